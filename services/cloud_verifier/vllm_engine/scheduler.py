"""vLLM's scheduler, held to the pass that DSD's batching rule has formed.

Invariant: a step computes only requests of its plan, and of each at most the planned tokens. All of vLLM's own rules
(KV blocks, prefix cache, preemption) go on below that.

One of three files that use vLLM's internal interfaces (tests/vllm/test_contract.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus


@dataclass(frozen=True, slots=True)
class Planned:
    """A request's share of a step: at most `num_tokens`, guesses included. Cached tokens don't count."""

    num_tokens: int
    guesses: list[int]


class PlannedScheduler(Scheduler):  # type: ignore[misc]
    """Set `plan` before each step; `num_scheduled` and `preempted_ids` tell what became of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plan: Mapping[str, Planned] = {}
        self.num_scheduled: dict[str, int] = {}
        self.preempted_ids: list[str] = []
        # Without a table a new request with a cached prompt is padded with guesses that nobody made.
        self.dynamic_sd_lookup = [self.num_spec_tokens] * (self.max_num_running_reqs + 1)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        for request in self.running:
            planned = self.plan.get(request.request_id)
            request.spec_token_ids = self._valid_guesses(request, planned) if planned is not None else []
        output = super().schedule(throttle_prefills)
        self.num_scheduled = dict(output.num_scheduled_tokens)
        self.preempted_ids = [each.request_id for each in self.waiting if each.status == RequestStatus.PREEMPTED]
        return output

    def _valid_guesses(self, request: Request, planned: Planned) -> list[int]:
        """Guesses that the request's grammar, if it has one, allows; none inside a prompt."""
        if request.num_tokens - request.num_computed_tokens > 1:
            return []
        guesses: list[int] = self.structured_output_manager.validate_tokens(request, planned.guesses)
        return guesses

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """vLLM asks this for every request, running or new: how many tokens it may compute now; 0 skips it."""
        planned = self.plan.get(request.request_id)
        if planned is None:
            return 0
        allowed: int = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if self.need_mamba_block_aligned_split:  # its chunks end at block borders, which a cap would undo
            return allowed
        return min(allowed, planned.num_tokens)
