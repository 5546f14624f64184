"""One measured request to a gateway's HTTP API, as a client sees it.

Invariant: every outcome of a request is a sample; only cancellation raises.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import aiohttp

from benchmarks.harness.latency import OK, RequestSample
from client.gateway import BrokenOff, GatewayClient, RequestRefused, StreamedAnswer, Unreachable
from client.wire import AnswerOptions, ChatMessage, ChatRequest, StreamOptions

CONNECT_S = 10.0
SILENCE_S = 300.0  # longest wait for the next bytes


class MeasuredRequest(ChatRequest, frozen=True, omit_defaults=True):
    """A chat request that can make all answers equally long."""

    ignore_eos: bool | None = None


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """What all requests of a run have in common."""

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
    """A gateway client without a connection limit, so that no request waits for another."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as http:
        yield GatewayClient(url, http)


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A prompt and when it is due. Both times are of time.monotonic."""

    prompt_number: int
    prompt: str
    due_at: float
    started_at: float  # start of the run
    max_tokens: int | None = None


async def measure_request(
    gateway: GatewayClient, template: RequestTemplate, scheduled: ScheduledRequest
) -> RequestSample:
    """Sends the request now and reads its answer to the end."""
    sample, _ = await measure_text(gateway, template, scheduled)
    return sample


async def measure_text(
    gateway: GatewayClient, template: RequestTemplate, scheduled: ScheduledRequest
) -> tuple[RequestSample, str]:
    """The same, and the text."""
    sent_at = time.monotonic()
    answer: StreamedAnswer | None = None
    first_at: float | None = None
    status = OK
    try:
        async with (
            gateway.answer(template.request(scheduled.prompt, scheduled.max_tokens)) as answer,
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
    return _sample(scheduled, sent_at, first_at, status, answer), answer.text if answer else ""


def _sample(
    scheduled: ScheduledRequest, sent_at: float, first_at: float | None, status: str, answer: StreamedAnswer | None
) -> RequestSample:
    usage, report = (answer.usage, answer.report) if answer is not None and status == OK else (None, None)
    due_at = scheduled.due_at
    return RequestSample(
        prompt_number=scheduled.prompt_number,
        due_s=due_at - scheduled.started_at,
        sent_s=sent_at - due_at,
        first_s=None if first_at is None else first_at - due_at,
        total_s=time.monotonic() - due_at,
        status=status,
        num_tokens=usage.completion_tokens if usage else 0,
        num_prompt_tokens=usage.prompt_tokens if usage else 0,
        accepted=report.accepted if report else 0,
        rejected=report.rejected if report else 0,
        late=report.late if report else 0,
        discarded=report.discarded if report else 0,
    )
