"""A session table over an engine, pass by pass: no bus, no clock, guesses from the test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.cloud_verifier.loop import PassShare, step_row
from services.cloud_verifier.sessions import SessionSlot, SessionTable
from services.cloud_verifier.torch_engine.engine import TorchEngine
from shared.policies.batching import BatchCandidate, Batcher, PassCost
from shared.protocol.messages import NO_TOKENS, Draft, Open, Sampling, TokenIds
from shared.protocol.pass_row import PassInfo
from shared.protocol.refusal import Refused
from shared.protocol.subjects import new_instance_id

GATEWAY, DRAFTER = new_instance_id("gateway"), new_instance_id("edge")
PROMPT = (5, 6, 7)
MAX_LOOKED_UP = 8


class PassByPass(SessionTable):
    """Runs passes when the test says so, and records what gateways are told."""

    def __init__(self, engine: TorchEngine, batcher: Batcher | None = None) -> None:
        self.engine = engine
        self.told: list[tuple[int, bool]] = []  # number of a session, and whether it has KV cache
        self.refused: list[tuple[int, Refused]] = []
        self.num_fed = 0
        self.now = 0.0  # milliseconds
        self._batcher = batcher or Batcher(4096, 256, PassCost())
        super().__init__(engine, 100, 1e9, self._on_refused, self._on_change)

    def opens(
        self, number: int, max_tokens: int = 400, prompt: Sequence[int] = PROMPT, term: int = 1, **fields: Any
    ) -> SessionSlot:
        given: dict[str, Any] = {"committed_ids": NO_TOKENS, "sampling": Sampling(), "stop_ids": NO_TOKENS} | fields
        request = Open(f"{number:032x}", term, DRAFTER, TokenIds(prompt), max_tokens=max_tokens, **given)
        slot = self.open(request, GATEWAY, self.now)
        slot.told_to_wait = slot.waits
        return slot

    def guess(self, slot: SessionSlot, token_ids: Sequence[int]) -> None:
        """Guesses that follow the session's text and its pending guesses."""
        state = slot.state
        base = max(state.length, state.guesses.end)
        draft = Draft(state.session_id, state.term, state.guesses.epoch, base, TokenIds(token_ids), True, 0.0)
        state.on_draft(draft, 0.0)

    def begin_pass(self) -> list[PassShare]:
        """Freezes the rows of a pass over what is ready."""
        for slot in self:
            if slot.state.ready:
                slot.state.look_up(MAX_LOOKED_UP)
        self.prepare_pass()
        slots = self.ready()
        candidates = [
            BatchCandidate(
                slot.state.num_todo,
                slot.state.chances,
                slot.state.computed,
                self.now - slot.state.opened_at,
            )
            for slot in slots
        ]
        batch = []
        for share in self._batcher.form(candidates):
            slot = slots[share.index]
            row = slot.state.begin_pass(share.max_tokens, share.max_guesses)
            batch.append(PassShare(slot, row, step_row(slot, row)))
        return batch

    def end_pass(self, batch: Sequence[PassShare]) -> None:
        """Computes the rows and commits what was drawn."""
        computed = self.engine.step([share.compute for share in batch])
        for share, each in zip(batch, computed, strict=True):
            self.num_fed += each.num_tokens
            state, drawn = share.slot.state, each.drawn
            verdict = state.end_pass(
                share.row, drawn.token_ids, PassInfo(), 0.0, drawn.logprobs, each.length, scored=drawn.scored
            )
            if verdict is not None and verdict.finish:
                self.settle(share.slot)

    def run_pass(self) -> list[int]:
        """Computes one pass; returns the numbers of its sessions."""
        batch = self.begin_pass()
        self.end_pass(batch)
        return [number_of(share.slot) for share in batch]

    def finish(self, *slots: SessionSlot) -> int:
        """Runs passes until the sessions have their answers; returns their number."""
        num_passes = 0
        while any(slot.state.finish is None for slot in slots):
            assert self.run_pass(), "no session is ready"
            num_passes += 1
        return num_passes

    def check(self) -> None:
        """What is reserved is at most what there is."""
        open_ones = sum(slot.context.capacity for slot in self if slot.context is not None)
        assert open_ones + self.engine.free_kv_tokens == self.engine.info.kv_tokens
        assert open_ones + self.engine.prefixes.reserved <= self.engine.info.kv_tokens

    def _on_refused(self, slot: SessionSlot, refusal: Refused) -> None:
        self.refused.append((number_of(slot), refusal))

    def _on_change(self, slot: SessionSlot) -> None:
        slot.told_to_wait = slot.waits
        self.told.append((number_of(slot), not slot.waits))


def number_of(slot: SessionSlot) -> int:
    return int(slot.state.session_id, 16)


def answer_of(slot: SessionSlot) -> list[int]:
    return slot.state.tokens[len(slot.state.request.prompt_ids) :]
