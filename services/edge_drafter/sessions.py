"""The drafter's sessions, and their fair turns at the one draft model.

Invariant: the model is given to the sessions that want a step in turn, so a long prompt of one session delays another
by at most one chunk of it. Times are milliseconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec import structs

from awc.policy import WindowChoice
from services.edge_drafter.model import DraftCache, DraftModel
from shared.protocol.drafter_session import DrafterSession
from shared.protocol.messages import Speculate
from shared.protocol.refusal import Refused, check_text
from shared.protocol.verifier_session import Fates


@dataclass(slots=True)
class Seen:
    """Counts of a session that were already reported or exported, and the verifier whose pair has the next ones."""

    verifier_id: str
    drafted: int = 0
    fates: Fates = field(default_factory=Fates)


@dataclass(slots=True, eq=False)
class Seat:
    """A session, its cache, and whose it is."""

    state: DrafterSession
    cache: DraftCache
    gateway_id: str
    seen: Seen = field(init=False)

    def __post_init__(self) -> None:
        self.seen = Seen(self.verifier_id)

    @property
    def verifier_id(self) -> str:
        return self.state.request.verifier_id

    @property
    def is_adaptive(self) -> bool:
        return self.state.request.speculation.mode == "adaptive"


class SessionTable:
    """All sessions of one drafter, in the order of their last turn (who waits longest is first)."""

    def __init__(self, model: DraftModel, max_sessions: int) -> None:
        self._model = model
        self._max_sessions = max_sessions
        self._seats: dict[str, Seat] = {}
        self.draining = False

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._seats.values())

    def get(self, session_id: str) -> Seat | None:
        return self._seats.get(session_id)

    def speculate(self, request: Speculate, gateway_id: str, choice: WindowChoice, now: float) -> Seat:
        """Starts a session, or rebinds one (higher term, keeping what its cache holds of the text); raises Refused. An
        answer that may become longer than the model can see is drafted for as far as it can."""
        request = self._fitted(request)
        check_text(request, self._model.vocab_size, self._model.max_context)
        seat = self._seats.get(request.session_id)
        if seat is None:
            return self._start(request, gateway_id, choice, now)
        if seat.gateway_id != gateway_id:
            raise Refused("unknown_session", "the session belongs to another gateway", retryable=False)
        if request.term > seat.state.term:
            seat.state.rebind(request, now)
            self._refit(seat)
            steer(seat, choice)
        return seat

    def drop(self, session_id: str) -> Seat | None:
        """Forgets a session; its open guesses count as discarded."""
        seat = self._seats.pop(session_id, None)
        if seat is not None and not seat.state.closed:
            seat.state.close()
        return seat

    def next_turn(self) -> Seat | None:
        """The session that has waited longest for a draft step, moved to the end of the line."""
        seat = next((seat for seat in self if seat.state.wants_step), None)
        if seat is not None:
            self._seats[seat.state.session_id] = self._seats.pop(seat.state.session_id)
        return seat

    def _fitted(self, request: Speculate) -> Speculate:
        """The part of the request that the model can see; raises Refused where there is no room for one guess."""
        context, num_prompt = self._model.max_context, len(request.prompt_ids)
        length = num_prompt + len(request.committed_ids)
        if length >= context:
            message = f"a text of {length} tokens leaves no room in the context of {context}"
            raise Refused("too_long", message, retryable=False)
        most = context - num_prompt
        max_tokens, min_tokens = min(request.max_tokens, most), min(request.min_tokens, most)
        return structs.replace(request, max_tokens=max_tokens, min_tokens=min_tokens)

    def _start(self, request: Speculate, gateway_id: str, choice: WindowChoice, now: float) -> Seat:
        if self.draining:
            raise Refused("draining", "the drafter is shutting down", retryable=True)
        if len(self._seats) >= self._max_sessions:
            raise Refused("overloaded", f"all {self._max_sessions} sessions are taken", retryable=True)
        state = DrafterSession.started(request, choice.window, choice.chunk, choice.free_run, now)
        seat = Seat(state, self._model.new_cache(state.limit), gateway_id)
        steer(seat, choice)
        self._seats[request.session_id] = seat
        return seat

    def _refit(self, seat: Seat) -> None:
        """A rebound session may be longer than its cache: then it gets a new one and feeds its text again."""
        if seat.state.limit > seat.cache.capacity:
            seat.cache = self._model.new_cache(seat.state.limit)
            seat.state.drop_cache()


def steer(seat: Seat, choice: WindowChoice) -> None:
    """Gives a session its window and threshold: the request's own when it named a window, else the controller's."""
    speculation = seat.state.request.speculation
    if seat.is_adaptive:
        seat.state.steer(choice.window, choice.chunk, choice.free_run, choice.min_confidence)
    else:
        seat.state.steer(speculation.window, choice.chunk, choice.free_run, speculation.min_confidence)
