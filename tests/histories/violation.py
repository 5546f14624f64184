"""What a history finds: a broken rule; and what it makes happen: errors that services must survive."""

from __future__ import annotations


class Violation(BaseException):
    """A rule of the protocol is broken. No Exception: services catch those."""


class Injected(Exception):
    """An error of a model, which the schedule asked for."""


class Uncounted:
    """Metrics that count nothing: whatever is asked of them, they answer themselves."""

    def __getattr__(self, name: str) -> Uncounted:
        return self

    def __call__(self, *args: object, **kwargs: object) -> Uncounted:
        return self
