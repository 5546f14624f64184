"""The drafter of one session: which one to bind, when to repeat Speculate, when to look for another.

Pure: no I/O and no clock. Every call gets `now` in seconds.

Invariant: the bound drafter stays while it is alive and not avoided. A drafter that failed the session is avoided for
`avoid_drafter_s`, and longer each time; a session without a drafter looks for one at most every `adopt_s`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from services.gateway.session.generation import Generation
from services.gateway.session.placement import Placement
from services.gateway.session.quarantine import Quarantine
from services.gateway.session.timeouts import SessionTiming

MIN_TOKENS_FOR_DRAFTER = 4  # with fewer tokens to come a change of drafter costs more than it saves

Reminder: TypeAlias = Literal["none", "repeat", "give up"]


@dataclass(slots=True)
class DrafterBinding:
    """Chooses the drafter and keeps count of the Speculates sent to it in this term."""

    generation: Generation
    placement: Placement
    timing: SessionTiming
    quarantine: Quarantine
    drafter_id: str | None = None
    _num_speculates: int = 0  # in this term
    _speculated_at: float = 0.0
    _search_at: float = 0.0

    def choose(self, verifier_id: str, num_committed: int, now: float, *, was_opened: bool) -> str | None:
        """The bound drafter while it may stay, else the best one; None: the verifier runs alone.

        num_committed: tokens of the answer so far. was_opened: a change of drafter would reopen the session.
        """
        avoided = self.quarantine.avoided(now)
        if self.drafter_id and self.drafter_id not in avoided and self.placement.fleet.is_alive(self.drafter_id, now):
            return self.drafter_id
        num_left = self.generation.max_tokens - num_committed
        if was_opened and num_left < MIN_TOKENS_FOR_DRAFTER:
            return None
        return self.placement.drafter(self.generation, verifier_id, num_left, now, avoided)

    def give_up(self, now: float, *, has_failed: bool) -> None:
        """Avoids the bound drafter for a while, so that `choose` names another. has_failed: it failed the session;
        else its heartbeats stopped."""
        assert self.drafter_id is not None
        if has_failed:
            self.quarantine.avoid_longer(self.drafter_id, now, self.timing.avoid_drafter_s)
        else:
            self.quarantine.avoid(self.drafter_id, now + self.timing.avoid_drafter_s)

    def begin_term(self) -> None:
        """No Speculate of the new term has been sent yet."""
        self._num_speculates = 0

    def on_speculate(self, now: float) -> None:
        """A Speculate is sent to the bound drafter."""
        self._speculated_at = now
        self._num_speculates += 1

    def reminder(self, now: float) -> Reminder:
        """What to do while no draft of this term has reached the verifier: the Speculate may be lost, or the drafter
        in trouble. The wait doubles with every Speculate."""
        if self.drafter_id is None or self._num_speculates == 0:
            return "none"
        if now - self._speculated_at < self.timing.speculate_retry_s * 2 ** (self._num_speculates - 1):
            return "none"
        return "repeat" if self._num_speculates < self.timing.num_speculates else "give up"

    def is_search_due(self, now: float) -> bool:
        """Whether a session without a drafter should look for one now; then not again before `adopt_s`."""
        if now < self._search_at:
            return False
        self._search_at = now + self.timing.adopt_s
        return True
