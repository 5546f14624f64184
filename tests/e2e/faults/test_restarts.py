"""Every service is told to stop under running streams, and all of them one after the other: no stream fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from signal import SIGTERM

import aiohttp
import pytest
import pytest_asyncio

from tests.e2e.processes import WHOLE_S, Answer, Processes, Question, Stream, processes, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.long, pytest.mark.timeout(900)]

NUM_STREAMS, NUM_TOKENS = 8, 96
QUESTIONS = [
    Question(f"Tell me {number} things about the sea.", NUM_TOKENS, temperature=0.8 * (number % 2), seed=number)
    for number in range(3, 3 + NUM_STREAMS)
]
NAMES = ("nats-server", "controller", "verifier-0", "verifier-1", "drafter-0", "drafter-1", "gateway")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(default_models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Processes]:
    run_dir = tmp_path_factory.mktemp("restarts")
    async with processes(default_models, run_dir, ("int8", "int4"), num_verifiers=2) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(system: Processes) -> dict[Question, Answer]:
    answers = await asyncio.gather(*(system.ask(question) for question in QUESTIONS))
    assert min(answer.num_tokens for answer in answers) > 48, "too short to be disturbed"
    return dict(zip(QUESTIONS, answers, strict=True))


def names_of(system: Processes) -> list[str]:
    """NATS servers that are none of its children are not told to stop here."""
    return [name for name in NAMES if name in system.system.children]


async def stop(system: Processes, name: str) -> None:
    """Tells a process to stop, and returns when it runs again."""
    num_starts = system.child(name).num_starts
    system.signal(name, SIGTERM)
    await system.restarted(name, num_starts)


@pytest.mark.parametrize("name", NAMES)
async def test_a_service_that_is_told_to_stop_fails_no_stream(
    system: Processes, undisturbed: dict[Question, Answer], name: str
) -> None:
    if name not in names_of(system):
        pytest.skip("the servers of a joined bus are none of the system's processes")
    await system.whole()
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(system.stream(question)) for question in QUESTIONS]
        await asyncio.gather(*(stream.pieces(2) for stream in streams))
        stopping = asyncio.create_task(stop(system, name))
        answers = await asyncio.gather(*(stream.rest() for stream in streams))
        await stopping
    assert [answer.told for answer in answers] == [undisturbed[question].told for question in QUESTIONS]
    assert any(notice.startswith(f"{name} ended with status 0") for notice in system.notices), system.notices


async def test_a_rolling_restart_of_everything_fails_no_stream(
    system: Processes, undisturbed: dict[Question, Answer]
) -> None:
    await system.whole()
    over = asyncio.Event()
    told: list[tuple[Question, Answer]] = []

    async def keep_asking(question: Question) -> None:
        while not over.is_set():
            is_accepted = False
            try:
                async with system.post(question) as response:
                    is_accepted = response.status == 200
                    if is_accepted:
                        told.append((question, await Stream(question, response).rest()))
                        continue
                    assert response.status == 503, await response.text()
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):  # the gateway goes, or is not back yet
                assert not is_accepted
            await asyncio.sleep(0.1)

    async def has_streams() -> bool:
        return (await system.metrics("gateway")).total("dsd_gateway_sessions") > 0

    async def has_more_than(number: int) -> bool:
        return len(told) > number

    async with asyncio.TaskGroup() as tasks:
        for question in QUESTIONS:
            tasks.create_task(keep_asking(question))
        for name in names_of(system):
            num_told = len(told)
            await until(has_streams, WHOLE_S, f"no stream runs that {name} could fail")
            await stop(system, name)
            await until(partial(has_more_than, num_told), WHOLE_S, f"no answer ends behind {name}'s restart")
        over.set()
    assert len(told) >= NUM_STREAMS
    for question, answer in told:
        assert answer.told == undisturbed[question].told
