"""One measured request to a gateway's HTTP API, as a client sees it.

Invariant: whatever becomes of a request is a sample; only cancelling ends a run.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import aiohttp

from benchmarks.harness.latency import OK, Sample
from client.gateway import BrokenOff, GatewayClient, RequestRefused, StreamedAnswer, Unreachable
from client.wire import AnswerOptions, ChatMessage, ChatRequest, StreamOptions

CONNECT_S = 10.0
SILENCE_S = 300.0  # the longest wait for the next bytes


class MeasuredRequest(ChatRequest, frozen=True, omit_defaults=True):
    """A request whose answers are all equally long where that is asked for."""

    ignore_eos: bool | None = None


@dataclass(frozen=True, slots=True)
class Asking:
    """How every request of a run is made."""

    model: str
    options: AnswerOptions
    ignore_eos: bool = False

    def request(self, prompt: str, max_tokens: int | None) -> MeasuredRequest:
        options = self.options
        return MeasuredRequest(
            self.model,
            [ChatMessage("user", prompt)],
            stream=True,
            stream_options=StreamOptions(include_usage=True),
            max_tokens=max_tokens or options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            dsd=options.speculation,
            ignore_eos=self.ignore_eos or None,
        )


@asynccontextmanager
async def connected(url: str, api_key: str = "") -> AsyncIterator[GatewayClient]:
    """A gateway without a limit on connections: none waits for another. The key, if any, goes with every request."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as http:
        yield GatewayClient(url, http)


@dataclass(frozen=True, slots=True)
class Due:
    """A request that is due: which prompt, when, behind which beginning (both on time.monotonic's clock)."""

    prompt_number: int
    prompt: str
    at: float
    beginning: float
    max_tokens: int | None = None


async def measure(gateway: GatewayClient, asking: Asking, due: Due) -> Sample:
    """Sends the request now and reads its answer to the end."""
    sent_at = time.monotonic()
    answer: StreamedAnswer | None = None
    first_at: float | None = None
    status = OK
    try:
        async with (
            gateway.answer(asking.request(due.prompt, due.max_tokens)) as answer,
            aclosing(answer.pieces()) as batches,
        ):
            async for _ in batches:
                first_at = first_at or time.monotonic()
    except RequestRefused as error:
        status = str(error.status)
    except BrokenOff:
        status = "broken off"
    except Unreachable:
        status = "unreachable"
    return _sample(due, sent_at, first_at, status, answer)


def _sample(due: Due, sent_at: float, first_at: float | None, status: str, answer: StreamedAnswer | None) -> Sample:
    usage, report = (answer.usage, answer.report) if answer is not None and status == OK else (None, None)
    return Sample(
        prompt_number=due.prompt_number,
        due_s=due.at - due.beginning,
        sent_s=sent_at - due.at,
        first_s=None if first_at is None else first_at - due.at,
        total_s=time.monotonic() - due.at,
        status=status,
        num_tokens=usage.completion_tokens if usage else 0,
        num_prompt_tokens=usage.prompt_tokens if usage else 0,
        accepted=report.accepted if report else 0,
        rejected=report.rejected if report else 0,
        late=report.late if report else 0,
        discarded=report.discarded if report else 0,
    )
