"""The verifier's sessions: admission by free KV cache, leases, tombstones.

Invariant: the KV reservations of all sessions, and of the caches kept for their prefixes, never exceed `kv_tokens`; a
session without a cache waits its turn, first come first served, and is never given up for want of room; only where the
cache itself can't be made, for want of memory say, is it refused. Times are milliseconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from services.cloud_verifier.torch_engine.kv import KvCache, Prefix
from services.cloud_verifier.torch_engine.model import TargetModel
from services.cloud_verifier.torch_engine.prefixes import MIN_TOKENS, PrefixCache, num_common
from shared.protocol.messages import Open, Tally
from shared.protocol.refusal import Refused, check_text
from shared.protocol.verifier_session import VerifierSession

KV_BLOCK = 512  # reservations are multiples of it, as the attention kernel's reads are
NO_MEMORY = (MemoryError, OSError, torch.OutOfMemoryError)  # of Python, of mmap, of a GPU

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Seat:
    """A session and what the verifier keeps for it; `cache` is None while it waits for room and after it finished.

    `prefix` is to be copied into the cache by the session's next pass; `twin` is an older session that is computing a
    prefix of the same text right now, and is waited for.
    """

    state: VerifierSession
    renewed_at: float
    reserved: int
    cache: KvCache | None = None
    counted: Tally = field(default_factory=Tally)  # what the metrics have of the session's tally
    prefix: Prefix | None = None
    twin: Seat | None = None

    def take_prefix(self) -> Prefix | None:
        """The prefix to copy, for the pass that copies it."""
        prefix, self.prefix = self.prefix, None
        return prefix


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A session closed in `term`: only a higher term may open it again until this is forgotten at `until`."""

    term: int
    until: float


class SessionTable:
    """All sessions of one verifier, in the order of their opening."""

    def __init__(
        self,
        model: TargetModel,
        kv_tokens: int,
        max_sessions: int,
        lease_ms: float,
        refuse: Callable[[Seat, Refused], None],
    ) -> None:
        """`refuse` is told of every seat that is dropped because its cache can't be made; it leaves the table alone."""
        self._model = model
        self._refuse = refuse
        self._max_sessions = max_sessions
        self._lease_ms = lease_ms
        self._seats: dict[str, Seat] = {}
        self._tombstones: dict[str, Tombstone] = {}
        self.kv_tokens = kv_tokens
        self.free_kv_tokens = kv_tokens  # what no session has reserved; kept caches give way
        self.num_shared_tokens = 0  # copied instead of computed, in all
        self.draining = False
        self._prefixes = PrefixCache()

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._seats.values())

    @property
    def num_active(self) -> int:
        """Sessions that still have tokens to commit."""
        return sum(seat.state.finish is None for seat in self)

    @property
    def kept_kv_tokens(self) -> int:
        """Room taken by caches of sessions that are over; it gives way to sessions."""
        return self._prefixes.reserved

    @property
    def room(self) -> int:
        """The longest text, prompt and answer, that one session can reserve."""
        return self.kv_tokens // KV_BLOCK * KV_BLOCK

    @property
    def max_context(self) -> int:
        """The longest text, prompt and answer, that is taken."""
        return min(self._model.max_context, self.room)

    def open(self, request: Open, gateway_id: str, now: float) -> Seat:
        """Opens, re-opens (same term: nothing changes) or rebinds (higher term) a session; raises Refused. A seat whose
        cache can't be made is not in the table any more: `refuse` was told."""
        self._check(request)
        seat = self._seats.get(request.session_id)
        if seat is None:
            self._check_room(request)
            seat = Seat(VerifierSession.opened(request, gateway_id, now), now, 0)
            self._seats[request.session_id] = seat
            self._tombstones.pop(request.session_id, None)
        elif seat.state.gateway_id != gateway_id:
            raise Refused("unknown_session", "the session belongs to another gateway", retryable=False)
        elif request.term > seat.state.term:
            seat.state.rebind(request, now)
        seat.renewed_at = now
        self.settle(seat)
        return seat

    def find(self, session_id: str) -> Seat:
        """The session's seat; raises Refused for one that is closed or was never opened here."""
        seat = self._seats.get(session_id)
        if seat is not None:
            return seat
        if session_id in self._tombstones:
            raise Refused("closed", "the session is closed", retryable=False)
        raise Refused("unknown_session", "no such session at this verifier", retryable=True)

    def close(self, session_id: str, term: int, now: float) -> Seat | None:
        """Ends a session and leaves a tombstone for one lease; None when there is none."""
        seat = self._seats.pop(session_id, None)
        if seat is not None:
            self._tombstones[session_id] = Tombstone(max(term, seat.state.term), now + self._lease_ms)
            seat.state.close()
            self._release(seat)
            self.admit()
        return seat

    def renew(self, gateway_id: str, now: float) -> None:
        """A sign of life from a gateway renews the leases of all its sessions but the finished ones: those are over for
        it, and where its Close was lost, nothing else ends them."""
        for seat in self:
            if seat.state.gateway_id == gateway_id and not seat.state.finish:
                seat.renewed_at = now

    def expire(self, now: float) -> list[Seat]:
        """Closes sessions whose lease was not renewed; forgets old tombstones."""
        self._tombstones = {key: stone for key, stone in self._tombstones.items() if stone.until > now}
        overdue = [seat.state for seat in self if now - seat.renewed_at > self._lease_ms]
        return [seat for state in overdue if (seat := self.close(state.session_id, state.term, now)) is not None]

    def ready(self) -> list[Seat]:
        """Sessions that the next pass can do something for, oldest first."""
        return [seat for seat in self if seat.cache is not None and seat.state.ready and not self._waits(seat)]

    def settle(self, seat: Seat) -> None:
        """Brings a seat's cache in line with its state: a finished session keeps none, a longer one needs a larger."""
        if seat.state.finish or seat.state.limit > seat.reserved > 0:
            self._release(seat)
            seat.state.drop_cache()
        self.admit()

    def admit(self) -> None:
        """Gives caches to waiting sessions, oldest first, as far as there is room. Where one can't be made, its session
        is dropped as if it had never been opened here, and refused."""
        for seat in list(self):
            if seat.cache is not None or seat.state.finish:
                continue
            reserved = self._reservation(seat.state.limit)
            if reserved > self.free_kv_tokens:
                return
            try:
                self._furnish(seat, reserved)
            except NO_MEMORY:
                log.exception("no memory for a KV cache", session=seat.state.session_id, tokens=reserved)
                self._turn_away(seat, Refused("overloaded", "no memory is left for a KV cache", retryable=True))
            except Exception:
                log.exception("a KV cache can't be made", session=seat.state.session_id, tokens=reserved)
                self._turn_away(seat, Refused("internal", "no KV cache can be made", retryable=True))

    def _furnish(self, seat: Seat, reserved: int) -> None:
        """Reserves and makes the seat's cache; where that fails nothing is reserved."""
        self._share(seat)
        self._prefixes.shrink(self.free_kv_tokens - reserved)
        seat.cache = self._model.new_cache(reserved)
        seat.reserved = reserved
        self.free_kv_tokens -= reserved

    def _turn_away(self, seat: Seat, refusal: Refused) -> None:
        if seat.prefix is not None:  # never copied
            self.num_shared_tokens -= seat.prefix.length
        del self._seats[seat.state.session_id]
        seat.state.close()
        self._release(seat)
        self._refuse(seat, refusal)

    def _share(self, seat: Seat) -> None:
        """Finds what others of the seat's scope have computed of its text, or are computing now."""
        scope, state = seat.state.request.cache_scope, seat.state
        if scope is None:
            return
        text = _array(state.tokens[:-1])  # the newest token must be fed
        kept = self._prefixes.find(scope, text)
        twin, common = self._twin(seat, text)
        if twin is not None and common > (kept.length if kept else 0):
            seat.twin = twin
        elif kept is not None:
            self._inherit(seat, kept)

    def _twin(self, seat: Seat, text: NDArray[np.int64]) -> tuple[Seat | None, int]:
        """The older seat with a cache whose text has most in common with `text`, and how many tokens that is. Younger
        ones may wait for `seat`, and two that wait for each other would wait for ever."""
        scope, best, most = seat.state.request.cache_scope, None, MIN_TOKENS - 1
        for other in self:
            if other is seat:
                break
            if other.cache is None or other.state.request.cache_scope != scope:
                continue
            common = num_common(_array(other.state.tokens[:-1]), text)
            if common > most:
                best, most = other, common
        return best, most

    def _waits(self, seat: Seat) -> bool:
        """Whether the seat's twin is still computing what they have in common; if not, it is copied."""
        twin, seat.twin = seat.twin, None
        if twin is None:
            return False
        common = num_common(_array(twin.state.tokens[:-1]), _array(seat.state.tokens[:-1]))
        if twin.cache is None:  # over meanwhile
            self._share(seat)
            return seat.twin is not None
        if twin.state.computed < common:
            seat.twin = twin
            return True
        source = twin.prefix.cache if twin.prefix else twin.cache  # what the twin has yet to copy is not in its own
        self._inherit(seat, Prefix(source, common))
        return False

    def _inherit(self, seat: Seat, prefix: Prefix) -> None:
        if prefix.length > seat.state.computed:
            self.num_shared_tokens += prefix.length - seat.state.computed
            seat.prefix = prefix
            seat.state.computed = prefix.length

    def _release(self, seat: Seat) -> None:
        """Takes the seat's cache away; what it holds may serve others of its scope."""
        self.free_kv_tokens += seat.reserved
        scope = seat.state.request.cache_scope
        if scope is not None and seat.cache is not None and seat.prefix is None:
            self._prefixes.keep(scope, seat.state.tokens[: seat.state.computed], seat.cache, seat.reserved)
        seat.reserved, seat.cache, seat.prefix, seat.twin = 0, None, None, None

    def _reservation(self, length: int) -> int:
        return -(-length // KV_BLOCK) * KV_BLOCK

    def _check(self, request: Open) -> None:
        length = check_text(request, self._model.vocab_size, self._model.max_context)
        if length > self.room:
            message = f"{length} tokens don't fit the KV cache of {self.room} tokens"
            raise Refused("too_long", message, retryable=False)

    def _check_room(self, request: Open) -> None:
        stone = self._tombstones.get(request.session_id)
        if stone is not None and request.term <= stone.term:
            raise Refused("closed", "the session is closed", retryable=False)
        if self.draining:
            raise Refused("draining", "the verifier is shutting down", retryable=True)
        if len(self._seats) >= self._max_sessions:
            raise Refused("overloaded", f"all {self._max_sessions} sessions are taken", retryable=True)


def _array(token_ids: Sequence[int]) -> NDArray[np.int64]:
    return np.array(token_ids, dtype=np.int64)
