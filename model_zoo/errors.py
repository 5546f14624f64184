"""What can go wrong with a user's model; each message says it in a line, and the command line prints it."""

from __future__ import annotations


class UnusableModel(ValueError):
    """The folder or hub id holds no model that can be used here."""


class ExportError(RuntimeError):
    """An exporter failed, or what it made doesn't work."""
