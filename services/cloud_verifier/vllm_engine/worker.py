"""vLLM's worker with DSD's coupled draw in place of its samplers.

vLLM verifies guesses by probability ratio. DSD draws each token from its logits, parameters, seed and position, and
accepts a guess exactly when it equals the draw (docs/sampling.md). So the draws of a step are the same with and without
guesses, as far as the logits are.

One of three files that use vLLM's internal interfaces (tests/vllm/test_contract.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from vllm.platforms import current_platform
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from services.cloud_verifier import sampler
from services.cloud_verifier.grammars import load_grammars
from shared.grammar.grammars import Grammars
from shared.grammar.running_grammar import rule_of
from shared.protocol.guesses import common_prefix
from shared.protocol.messages import Sampling, TokenIds, TokenLogprobs
from shared.protocol.running_adjustment import RunningAdjustment
from shared.protocol.sampling import is_adjusted, is_greedy

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as StockWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as StockWorker

RULE_KEY = "dsd"  # of a request's extra_args
MANY_TOKENS = 64  # in a pass: it is compute-bound, and more threads pay
TRIALS = 5  # passes of each number of tokens; the first only warms up
NOTHING = -1  # fills the rows of draws, as vLLM expects


class DrawRule(msgspec.Struct, frozen=True):
    """How a request draws. A resumed answer is part of vLLM's prompt, but counts as output here."""

    sampling: Sampling
    num_prompt: int
    stop_ids: tuple[int, ...]
    min_tokens: int
    num_top: int | None
    grammar: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the draw is the argmax of the logits as they are."""
        return is_greedy(self.sampling) and not self.changes_scores

    @property
    def changes_scores(self) -> bool:
        """Whether a score may differ from its logit."""
        return self.grammar is not None or is_adjusted(self.sampling, self.min_tokens)


class NonFiniteLogits(ArithmeticError):
    """The highest logit of a request is NaN or infinite."""


class NoProposer:
    """The drafter that vLLM asks for guesses. DSD's come over the network instead."""

    def __init__(self, vllm_config: Any) -> None:
        del vllm_config

    def propose(self, sampled_token_ids: Sequence[Any], *_: Any, **__: Any) -> list[list[int]]:
        return [[] for _ in sampled_token_ids]

    def load_model(self, target: Any) -> None:
        """There is none."""


class Worker(StockWorker):  # type: ignore[misc]
    """One rank of the model. On CPUs, long passes may have threads of their own number, and short ones be padded."""

    _threads: tuple[int, int] | None = None  # of passes of few and of many tokens; None: as torch has it

    def init_device(self) -> None:
        super().init_device()
        runner = self.model_runner
        model = runner.vllm_config.model_config
        vocab_size = model.get_vocab_size()
        runner._sample = CoupledSampler(runner, load_grammars(model.model, vocab_size), vocab_size)
        runner.effective_drafter_max_model_len = sys.maxsize  # else near the longest text zeros come back as guesses

    def use_prefill_threads(self, num: int) -> None:
        """From now on passes of MANY_TOKENS or more have this number of threads. By nothing but the number of tokens,
        for oneDNN keeps a product's threads with its shape."""
        self._threads = torch.get_num_threads(), num

    def execute_model(self, scheduler_output: Any) -> Any:
        if self._threads:
            has_many = scheduler_output.total_num_scheduled_tokens >= MANY_TOKENS
            torch._C.set_num_threads(self._threads[has_many])  # vLLM has replaced torch.set_num_threads
        return super().execute_model(scheduler_output)

    @torch.inference_mode()
    def pass_seconds(self, numbers: Sequence[int]) -> list[float]:
        """Seconds of a pass of each number of tokens, without attention: the shortest trial. The numbers take turns."""
        runner, seconds = self.model_runner, np.empty((TRIALS, len(numbers)))
        for trial in seconds:
            for i, number in enumerate(numbers):
                started = time.perf_counter()
                _, hidden = runner._dummy_run(number)
                runner.model.compute_logits(hidden)
                trial[i] = time.perf_counter() - started
        return [float(each) for each in seconds[1:].min(axis=0)]

    def pad_passes(self, least: int) -> None:
        """Pads all later passes, and the rows of their logits, to at least `least` rows. All ranks must do it."""
        runner = self.model_runner
        dispatch, compute_logits = runner.cudagraph_dispatcher.dispatch, runner.model.compute_logits

        def padded_dispatch(num_tokens: int, **choices: Any) -> Any:
            return dispatch(num_tokens=max(num_tokens, least), **choices)

        def padded_logits(hidden: Tensor) -> Any:
            logits = compute_logits(pad(hidden, (0, 0, 0, max(0, least - len(hidden)))))
            return None if logits is None else logits[: len(hidden)]

        runner.cudagraph_dispatcher.dispatch, runner.model.compute_logits = padded_dispatch, padded_logits

    def take_draft_token_ids(self) -> None:
        """The scheduler gets guesses from the engine alone."""

    def attention_backends(self) -> list[str]:
        """Names of the attention backends of all layers."""
        groups = [group for groups in self.model_runner.attn_groups for group in groups]
        return sorted({group.backend.get_name() for group in groups})


@dataclass(frozen=True, slots=True)
class Request:
    """A request of the step: its rows of the logits, each drawn after the guesses before it."""

    rule: DrawRule
    rows: slice
    position: int  # of the first draw
    guesses: Sequence[int]
    running: RunningAdjustment | None  # of the text before the first draw


@dataclass(slots=True)
class Followed:
    """What a request keeps from step to step. Its text only grows: a text that changes gets a new request."""

    rule: DrawRule
    grammars: Grammars
    vocab_size: int
    running: RunningAdjustment | None = None  # from the first draw on, if scores differ from logits

    def follow(self, text: NDArray[np.integer]) -> None:
        """text: before the next draw."""
        rule = self.rule
        if not rule.changes_scores:
            return
        if self.running is None:
            prompt_ids = text[: rule.num_prompt].tolist()
            obeyed = rule_of(rule, self.grammars, self.vocab_size)
            self.running = RunningAdjustment(rule.sampling, prompt_ids, rule.stop_ids, rule.min_tokens, obeyed)
        self.running.extend(text[self.running.length :].tolist())


class CoupledSampler:
    """Called by vLLM's model runner after each forward pass, on every rank with the same result."""

    def __init__(self, runner: Any, grammars: Grammars, vocab_size: int) -> None:
        self._runner = runner
        self._followed: dict[str, Followed] = {}  # by request id
        self._vocab_size = vocab_size
        self._grammars = grammars

    def __call__(self, logits: Tensor, metadata: Any) -> SamplerOutput:
        """Draws of all requests. logits: for each request one row for each guess and one more."""
        requests = self._requests(metadata)
        drawn = self._draw(logits, requests)
        width = max(len(request.guesses) for request in requests if request) + 1 if any(requests) else 1
        ids = [[*each, *[NOTHING] * (width - len(each))] for each in drawn]
        token_ids = torch.tensor(ids, dtype=torch.int32, device=logits.device)
        return SamplerOutput(token_ids, _logprobs(logits, requests, drawn, width))

    def _requests(self, metadata: Any) -> list[Request | None]:
        """The requests in the order of the batch; None for one whose prompt is not computed to its end."""
        batch, alive = self._runner.input_batch, self._runner.requests
        if len(self._followed) > len(alive):
            self._followed = {key: each for key, each in self._followed.items() if key in alive}
        num_guesses = metadata.num_draft_tokens if metadata is not None else [0] * batch.num_reqs
        guesses = metadata.draft_token_ids.tolist() if metadata is not None else []
        is_prompt = self._runner.discard_request_mask.np
        ends = list(accumulate(num + 1 for num in num_guesses))
        requests: list[Request | None] = []
        for i, (num, end) in enumerate(zip(num_guesses, ends, strict=True)):
            first_guess = end - i - 1 - num
            own = guesses[first_guess : first_guess + num]
            requests.append(None if is_prompt[i] else self._request(batch, i, slice(end - num - 1, end), own))
        return requests

    def _request(self, batch: Any, index: int, rows: slice, guesses: Sequence[int]) -> Request:
        followed, length = self._follow(batch.req_ids[index]), int(batch.num_tokens_no_spec[index])
        followed.follow(batch.token_ids_cpu[index, :length])
        return Request(followed.rule, rows, length, guesses, followed.running)

    def _follow(self, request_id: str) -> Followed:
        if request_id not in self._followed:
            rule = draw_rule_of(self._runner.requests[request_id].sampling_params)
            self._followed[request_id] = Followed(rule, self._grammars, self._vocab_size)
        return self._followed[request_id]

    def _draw(self, logits: Tensor, requests: Sequence[Request | None]) -> list[list[int]]:
        """Draws of each request up to the first that differs from its guess; one unused id for a None."""
        best: list[int] | None = None
        if any(request and request.rule.is_plain for request in requests):
            best = sampler.draw(logits.float(), Sampling(), 0).tolist()
        drawn = []
        for request in requests:
            if request is None:
                drawn.append([0])
                continue
            if request.rule.is_plain and best is not None:
                ids = best[request.rows]
            else:
                ids = _draw_one(logits[request.rows].float(), request)
            ids = ids[: common_prefix(request.guesses, ids) + 1]
            if sampler.NO_DRAW in ids:
                raise NonFiniteLogits(f"the highest logit at position {request.position} or later is not finite")
            drawn.append(ids)
        return drawn


def draw_rule_of(params: Any) -> DrawRule:
    """The rule in a request's sampling parameters; greedy for vLLM's own warm-up requests, which have none."""
    given = (params.extra_args or {}).get(RULE_KEY)
    return msgspec.convert(given, DrawRule) if given else DrawRule(Sampling(), 0, (), 0, None)


def _draw_one(logits: Tensor, request: Request) -> list[int]:
    rule = request.rule
    scores = sampler.adjust(logits, request.running, request.guesses)
    ids: list[int] = sampler.draw(scores, rule.sampling, request.position).tolist()
    return ids


def _logprobs(
    logits: Tensor, requests: Sequence[Request | None], drawn: Sequence[list[int]], width: int
) -> LogprobsTensors | None:
    """Logprobs [requests x width, 1 + most top tokens]: of the drawn token, then of the most likely ones."""
    num_top = [r.rule.num_top for r in requests if r and r.rule.num_top is not None]
    if not num_top:
        return None
    shape = (len(requests) * width, 1 + max(num_top))
    token_ids, values = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape)
    for i, (request, ids) in enumerate(zip(requests, drawn, strict=True)):
        if request is None or request.rule.num_top is None:
            continue
        told = sampler.logprobs(logits[request.rows][: len(ids)].float(), ids, request.rule.num_top)
        for j, (drawn_id, each) in enumerate(zip(ids, told, strict=True)):
            columns = 1 + len(each.top_ids)
            token_ids[i * width + j, :columns] = torch.tensor([drawn_id, *each.top_ids])
            values[i * width + j, :columns] = torch.tensor([each.logprob, *each.top_logprobs])
    return LogprobsTensors(token_ids, values, torch.zeros(shape[0], dtype=torch.int32))


def logprobs_of(columns: Any, num_top: int) -> list[TokenLogprobs]:
    """Logprobs of a request's draws. columns: the request's part of the arrays that `_logprobs` filled, from vLLM."""
    rows = zip(columns.logprob_token_ids.tolist(), columns.logprobs.tolist(), strict=True)
    return [TokenLogprobs(values[0], TokenIds(ids[1 : num_top + 1]), values[1 : num_top + 1]) for ids, values in rows]
