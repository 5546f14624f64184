"""A whole local system of real processes around a real nats-server, and a client of its gateway.

The environment chooses the bus: DSD_SECURE=1 gives users and TLS, as `python -m services --secure` has them;
DSD_JOINED=1 a cloud's and a site's server, joined by the leaf link of the overlays (test_buses.py).
Failures are triggered by what a stream has told so far (its k-th chunk), never by the clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.local import nats_server
from services.local.engine import VerifierEngine
from services.local.pair import default_pair
from services.local.supervisor import Child
from services.local.system import System, SystemPlan, running
from tests.k8s.joined import joined
from tests.plugins.nats import NatsServer

MODEL = "smollm2-135m"
IS_SECURE, IS_JOINED = (os.environ.get(name) == "1" for name in ("DSD_SECURE", "DSD_JOINED"))
FATES = ("accepted", "rejected", "late", "discarded")
HEARTBEAT_S = 0.2  # a peer is given up after three of them
DRAIN_S = 90.0  # streams may be slow on a busy machine
ANSWER_S = 240.0  # longer than an answer waits for a verifier that restarts
BALANCED_S, LOOK_S = 30.0, 0.05
WHOLE_S = DRAIN_S + 90.0  # a process that is told to end drains first


@dataclass(frozen=True, slots=True)
class Question:
    """What a client asks; with temperature 0 the seed does not matter."""

    prompt: str
    max_tokens: int = 48
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def body(self, dsd: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": MODEL,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            "dsd": dsd,
        }


@dataclass(slots=True)
class Answer:
    """A streamed answer as far as it was read."""

    question: Question
    text: str = ""
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    dsd: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def num_tokens(self) -> int:
        return int(self.usage["completion_tokens"])

    @property
    def num_accepted(self) -> int:
        return int(self.usage["completion_tokens_details"]["accepted_prediction_tokens"])

    @property
    def num_judged(self) -> int:
        """Guesses that were compared with the target's tokens, in time or late."""
        return sum(self.dsd[fate] for fate in ("accepted", "rejected", "late"))

    @property
    def told(self) -> tuple[str, str | None, int]:
        """What no failure may change."""
        return self.text, self.finish, self.num_tokens


class Stream:
    """An answer under way: read as many pieces as wanted, do something, read the rest."""

    def __init__(self, question: Question, response: aiohttp.ClientResponse) -> None:
        self.answer = Answer(question)
        self._response = response

    async def pieces(self, number: int) -> None:
        """Reads so many more pieces of text; fails when the answer ends before."""
        async with asyncio.timeout(ANSWER_S):
            while number:
                number -= bool(await self._chunk())
                assert not self.answer.finish, f"over too early: {self.answer}"

    async def rest(self) -> Answer:
        """Reads to the end."""
        async with asyncio.timeout(ANSWER_S):
            while not self.answer.usage:
                await self._chunk()
        return self.answer

    async def _chunk(self) -> str:
        """Takes the next event; returns the text it brought."""
        line = b""
        while not line.startswith(b"data: "):
            line = await self._response.content.readline()
            assert line, f"the stream broke off: {self.answer}"
        event = json.loads(line[6:])
        assert "error" not in event, f"{event} after {self.answer}"
        answer, piece = self.answer, ""
        for choice in event["choices"]:
            piece = choice["delta"].get("content") or ""
            answer.finish = choice["finish_reason"]
        answer.text += piece
        answer.usage, answer.dsd = event.get("usage") or answer.usage, event.get("dsd") or answer.dsd
        answer.fingerprint = event["system_fingerprint"]
        return piece


class Metrics:
    """One reading of a process's metrics."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with those labels."""
        found = (each for each in self._samples if each.name == name and labels.items() <= each.labels.items())
        return sum(each.value for each in found)

    @property
    def drafted(self) -> int:
        return int(self.total("dsd_drafter_drafted_tokens_total"))

    @property
    def fates(self) -> dict[str, int]:
        """What became of a drafter's guesses."""
        return {fate: int(self.total("dsd_drafter_guesses_total", fate=fate)) for fate in FATES}


@dataclass(slots=True)
class Processes:
    """A running system as a test sees it."""

    system: System
    http: aiohttp.ClientSession
    notices: list[str]
    servers: list[NatsServer] = field(default_factory=list)  # of NATS, that are none of the system's children

    # --- ask -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def stream(self, question: Question, **dsd: Any) -> AsyncIterator[Stream]:
        """An answer to be read piece by piece; `dsd` are the request's options of that name."""
        async with self.post(question, **dsd) as response:
            assert response.status == 200, await response.text()
            yield Stream(question, response)

    def post(self, question: Question, **dsd: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The gateway's response, whatever it is."""
        return self.http.post(f"{self.system.plan.address}/v1/chat/completions", json=question.body(dsd))

    async def ask(self, question: Question, **dsd: Any) -> Answer:
        """A whole answer."""
        async with self.stream(question, **dsd) as stream:
            return await stream.rest()

    # --- look ------------------------------------------------------------------------------------------------------

    def names(self, service: str) -> list[str]:
        """The processes of one kind: "drafter", "verifier"."""
        return [name for name in self.system.children if name.startswith(service)]

    async def metrics(self, name: str) -> Metrics:
        async with self.http.get(f"{self.child(name).urls[-1]}/metrics") as response:
            return Metrics(await response.text())

    async def read(self, service: str, counter: str) -> dict[str, float]:
        """A counter of all processes of a service, by their names."""
        return {name: (await self.metrics(name)).total(counter) for name in self.names(service)}

    async def busiest(self, service: str, counter: str, before: dict[str, float]) -> str:
        """The process of a service whose counter has grown most since `before`, once one has."""
        now = before

        async def has_grown() -> bool:
            nonlocal now
            now = await self.read(service, counter)
            return now != before

        await until(has_grown, ANSWER_S, f"{counter} stays as it is")
        return max(now, key=lambda name: now[name] - before[name])

    def child(self, name: str) -> Child:
        return self.system.children[name]

    # --- break and mend --------------------------------------------------------------------------------------------

    def signal(self, name: str, number: signal.Signals) -> None:
        pid = self.child(name).pid
        assert pid is not None, f"{name} does not run"
        os.killpg(pid, number)

    async def crash_nats(self) -> None:
        """Every NATS server is killed, and comes back."""
        for server in self.servers:
            server.stop(kill=True)
        for server in self.servers:
            await asyncio.to_thread(server.start)
        if not self.servers:
            num_starts = self.child("nats-server").num_starts
            self.signal("nats-server", signal.SIGKILL)
            await self.restarted("nats-server", num_starts)

    async def restarted(self, name: str, num_starts: int) -> None:
        """Returns when a process that had been started `num_starts` times runs again and is ready."""
        child = self.child(name)

        async def is_ready() -> bool:
            return child.num_starts > num_starts and child.ready.is_set()

        await until(is_ready, WHOLE_S, f"{name} does not come back")

    async def drains(self, name: str) -> None:
        """Returns when a process says that it is draining."""
        url = f"{self.child(name).urls[-1]}/readyz"

        async def is_draining() -> bool:
            async with self.http.get(url) as response:
                return response.status == 503 and "draining" in await response.text()

        await until(is_draining, DRAIN_S, f"{name} does not drain")

    async def whole(self) -> None:
        """Returns when every process is ready and the gateway hears all verifiers and drafters, and only them."""
        expected = {service: len(self.names(service)) for service in ("verifier", "drafter")}

        async def is_whole() -> bool:
            if not all(child.ready.is_set() and child.pid for child in self.system.children.values()):
                return False
            seen = await self.metrics("gateway")
            peers = {service: seen.total("dsd_gateway_peers", service=service) for service in expected}
            return peers == expected and seen.total("dsd_gateway_sessions") == 0

        await until(is_whole, WHOLE_S, "the system is not whole")

    async def balanced(self) -> None:
        """Returns when all sessions are over at all drafters, and every guess has found its fate."""

        async def is_balanced() -> bool:
            readings = [await self.metrics(name) for name in self.names("drafter")]
            is_idle = all(reading.total("dsd_drafter_sessions") == 0 for reading in readings)
            return is_idle and all(reading.drafted == sum(reading.fates.values()) for reading in readings)

        await until(is_balanced, BALANCED_S, "sessions left, or guesses without a fate")


async def until(condition: Callable[[], Awaitable[bool]], at_most_s: float, otherwise: str) -> None:
    """Looks from outside until something holds."""
    try:
        async with asyncio.timeout(at_most_s):
            while not await condition():  # noqa: ASYNC110  what other processes do sets no event here
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise AssertionError(f"{otherwise} after {at_most_s:g} s") from None


@asynccontextmanager
async def processes(
    models: Path,
    run_dir: Path,
    drafts: tuple[str, ...],
    num_verifiers: int,
    engine: VerifierEngine | None = None,
) -> AsyncIterator[Processes]:
    """Starts a system on free ports, with frequent heartbeats, and ends it whatever happens."""
    pair, port = default_pair(models, drafts, len(drafts)), nats_server.free_port()
    plan = SystemPlan(pair, num_verifiers, port=port, secure=IS_SECURE, engine=engine or VerifierEngine())
    notices: list[str] = []
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=ANSWER_S)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("DSD_HEARTBEAT_S", str(HEARTBEAT_S))
        patch.setenv("DSD_DRAIN_S", str(DRAIN_S))
        patch.delenv("DSD_TARGET", raising=False)
        patch.setenv("DSD_NUM_THREADS", "1")  # there are several verifiers, and other tests beside them
        servers: list[NatsServer] = []
        if IS_JOINED:
            access, servers = stack.enter_context(joined(run_dir / "joined", plan.names))
            plan = replace(plan, nats=access)
        async with running(plan, run_dir, notices.append) as system, aiohttp.ClientSession(timeout=timeout) as http:
            whole = Processes(system, http, notices, servers)
            settings = system.children["drafter-0"].program.env
            assert settings["DSD_NATS_URL"].startswith("tls:") == IS_SECURE
            assert ("DSD_NATS_NKEY_SEED" in settings) == (IS_SECURE or IS_JOINED)
            await whole.whole()
            yield whole
    assert not [notice for notice in notices if "is killed" in notice], notices
