"""The messages of one session to its peers.

Invariant: every instance that was ever bound gets a Close in the end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from shared.protocol.messages import Close, Open, Poll, Service, Speculate


@dataclass(frozen=True, slots=True)
class Send:
    """A message to be sent to one instance."""

    service: Service
    instance_id: str
    message: Open | Speculate | Poll | Close


@dataclass(slots=True)
class SessionOutbox:
    """Collects the messages of a session until its driver sends them."""

    session_id: str
    _waiting: deque[Send] = field(default_factory=deque)
    _bound: dict[str, Service] = field(default_factory=dict)  # instances that may know the session

    def add(self, service: Service, instance_id: str | None, message: Open | Speculate | Poll) -> None:
        """Open and Speculate bind the instance."""
        assert instance_id is not None
        if not isinstance(message, Poll):
            self._bound[instance_id] = service
        self._waiting.append(Send(service, instance_id, message))

    def leave(self, term: int, *instance_ids: str | None) -> None:
        """Closes the session at these instances. They get another Close in the end, in case this one is lost."""
        for instance_id in instance_ids:
            if instance_id is not None and instance_id in self._bound:
                close = Close(self.session_id, term)
                self._waiting.append(Send(self._bound[instance_id], instance_id, close))

    def close(self, term: int) -> None:
        """Closes the session everywhere."""
        self.leave(term, *self._bound)
        self._bound.clear()

    @property
    def oldest(self) -> Send | None:
        """The next message to send; None: there is none."""
        return self._waiting[0] if self._waiting else None

    def mark_sent(self) -> None:
        """The oldest message is sent."""
        self._waiting.popleft()
