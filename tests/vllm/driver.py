"""The verifier's sessions over an engine, pass by pass: no bus, no clock, guesses from the test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from services.cloud_verifier.loop import step_row
from services.cloud_verifier.sessions import SessionSlot, SessionTable
from services.cloud_verifier.vllm_engine.engine import VllmEngine
from shared.policies.batching import BatchCandidate, Batcher, PassCost
from shared.protocol.messages import NO_TOKENS, Draft, Open, Sampling, TokenIds
from shared.protocol.pass_row import PassInfo
from shared.protocol.refusal import Refused
from shared.protocol.subjects import new_instance_id, new_session_id

MAX_LOOKED_UP = 8
GATEWAY, DRAFTER = new_instance_id("gateway"), new_instance_id("edge")


def opening(number: int, prompt: Sequence[int], max_tokens: int = 24, term: int = 1, **fields: Any) -> Open:
    """A session's Open. fields: others of Open."""
    given: dict[str, Any] = {"committed_ids": NO_TOKENS, "sampling": Sampling(), "stop_ids": NO_TOKENS} | fields
    return Open(f"{number:032x}", term, DRAFTER, TokenIds(prompt), max_tokens=max_tokens, **given)


def _chances(slot: SessionSlot) -> list[float]:
    num = len(slot.state.guesses.pending) + len(slot.state.own_guesses.ready.token_ids)
    return [0.9 ** (k + 1) for k in range(num)]


class Driver(SessionTable):
    """Runs passes when the test says so. All sessions have waited equally long."""

    def __init__(self, engine: VllmEngine, token_budget: int = 256, prefill_chunk: int = 64) -> None:
        super().__init__(engine, 64, 1e9, self._refused)
        self.engine = engine
        self.batcher = Batcher(token_budget, prefill_chunk, PassCost())

    @staticmethod
    def _refused(slot: SessionSlot, refusal: Refused) -> None:
        raise AssertionError(f"{slot.state.session_id} is refused: {refusal}")

    def opens(self, request: Open) -> SessionSlot:
        return self.open(request, GATEWAY, 0.0)

    def opens_new(self, request: Open) -> SessionSlot:
        """Opens a session of another id."""
        return self.opens(structs.replace(request, session_id=new_session_id()))

    def guess(self, slot: SessionSlot, token_ids: Sequence[int]) -> None:
        """Guesses that follow the session's text."""
        state = slot.state
        draft = Draft(state.session_id, state.term, state.guesses.epoch, state.length, TokenIds(token_ids), True, 0.0)
        state.on_draft(draft, 0.0)

    def run_pass(self) -> int:
        """Computes one pass over what is ready. Returns the number of sessions that got tokens."""
        for slot in self:
            if slot.state.ready:
                slot.state.look_up(MAX_LOOKED_UP)
        slots = self.ready()
        candidates = [BatchCandidate(slot.state.num_todo, _chances(slot), slot.state.computed, 1.0) for slot in slots]
        shares = self.batcher.form(candidates)
        chosen = [slots[share.index] for share in shares]
        rows = [slot.state.begin_pass(share.max_tokens, 16) for slot, share in zip(chosen, shares, strict=True)]
        computed = self.engine.step([step_row(slot, row) for slot, row in zip(chosen, rows, strict=True)])
        num_answered = 0
        for slot, row, each in zip(chosen, rows, computed, strict=True):
            drawn = each.drawn
            verdict = slot.state.end_pass(
                row, drawn.token_ids, PassInfo(), 0.0, drawn.logprobs, each.length, drawn.forced
            )
            num_answered += verdict is not None
            if verdict is not None and verdict.finish:
                self.settle(slot)
        return num_answered

    def finish(self, *slots: SessionSlot, right: Sequence[Sequence[int]] = (), num_guesses: int = 4) -> int:
        """Runs passes until the sessions have their answers. Returns the number of passes.

        right: the sessions' answers, from which guesses are taken.
        """
        num_passes = 0
        while any(slot.state.finish is None for slot in slots):
            for slot, answer in zip(slots, right, strict=False):
                known = slot.state.length - len(slot.state.request.prompt_ids)
                if slot.state.finish is None and not slot.state.guesses.pending:
                    self.guess(slot, answer[known : known + num_guesses])
            self.run_pass()
            num_passes += 1
            assert num_passes < 2000, "no end"
        return num_passes

    def answers(self, *requests: Open) -> list[list[int]]:
        """The answers of new sessions that run together, without guesses."""
        slots = [self.opens_new(request) for request in requests]
        self.finish(*slots)
        found = [answer_of(slot) for slot in slots]
        for slot in slots:
            self.close(slot.state.session_id, slot.state.term, 0.0)
        return found


def answer_of(slot: SessionSlot) -> list[int]:
    return slot.state.tokens[len(slot.state.request.prompt_ids) :]
