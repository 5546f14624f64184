"""The Secrets of docs/deploy.md, as tests of the manifests have them."""

from __future__ import annotations

from tests.k8s.conftest import documented

__all__ = ["documented"]
