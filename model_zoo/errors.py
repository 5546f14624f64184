"""Errors about a user's model. Each message is one line, which the command line prints."""

from __future__ import annotations


class UnusableModel(ValueError):
    """The folder or hub id holds no usable model."""


class ExportError(RuntimeError):
    """An exporter failed, or its output does not work."""
