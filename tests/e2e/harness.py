"""A verifier, drafters and a client in one process, on any bus: the real services' parts around real models.

The client speaks the gateway's side of the protocol and returns token ids, so that texts can be compared to the bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import CollectorRegistry

from services.cloud_verifier.engine import Engine
from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.service import Verifier
from services.cloud_verifier.settings import VerifierSettings
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.model import DraftModel
from services.edge_drafter.service import Drafter
from services.edge_drafter.settings import DrafterSettings
from shared.bus.bus import Bus
from shared.protocol import subjects
from shared.protocol.messages import (
    Close,
    Failure,
    Heartbeat,
    Message,
    Open,
    Opened,
    Sampling,
    Service,
    Speculate,
    Speculation,
    Tally,
    TokenIds,
    TokenLogprobs,
    Verdict,
    WindowDecision,
)

if TYPE_CHECKING:  # the built-in engine's compiler must not be loaded beside vLLM
    from services.cloud_verifier.torch_engine.engine import TorchEngine
    from services.cloud_verifier.torch_engine.model import TargetModel

ANSWER_S = 300.0


@dataclass(slots=True)
class Generated:
    """A whole answer."""

    token_ids: list[int] = field(default_factory=list)
    finish: str | None = None
    tally: Tally = field(default_factory=Tally)
    num_verdicts: int = 0
    fingerprint: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class Client:
    """Opens sessions, as a gateway does, and collects their verdicts by position."""

    def __init__(self, bus: Bus, name: str = "client") -> None:
        self.instance_id = subjects.new_instance_id(name)
        self._bus = bus
        self._inboxes: dict[str, asyncio.Queue[object]] = {}
        self._alive: asyncio.Queue[str] = asyncio.Queue()
        self._num_decisions = 0

    async def start(self) -> None:
        await self._bus.subscribe(subjects.inbox("gateway", self.instance_id), self._receive)
        for service in ("verifier", "drafter"):
            await self._bus.subscribe(
                subjects.all_broadcasts(Heartbeat, service),
                lambda subject, _: self._alive.put_nowait(subjects.sender(subject)),
            )

    async def wait_for(self, instance_ids: set[str]) -> None:
        """Returns when every one of them has sent a heartbeat."""
        async with asyncio.timeout(30):
            while instance_ids:
                instance_ids = instance_ids - {await self._alive.get()}

    async def hear_of(self, name: str) -> str:
        """The id of the first instance of that name that sends a heartbeat."""
        async with asyncio.timeout(30):
            while not (instance_id := await self._alive.get()).startswith(f"{name}."):
                pass
        return instance_id

    def _receive(self, subject: str, message: object) -> None:
        queue = self._inboxes.get(getattr(message, "session_id", ""))
        if queue is not None:
            queue.put_nowait(message)

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        verifier_id: str,
        drafter_id: str | None = None,
        sampling: Sampling | None = None,
        max_tokens: int = 64,
        stop_ids: Sequence[int] = (),
        speculation: Speculation | None = None,
        free_run: bool = True,
        committed_ids: Sequence[int] = (),
        min_tokens: int = 0,
        logprobs: int | None = None,
        cache_scope: str | None = None,
        grammar: str | None = None,
        lookup: bool = False,
    ) -> Generated:
        """One answer from beginning to end; raises RuntimeError on a Failure, TimeoutError when it takes too long."""
        session_id = subjects.new_session_id()
        queue = self._inboxes[session_id] = asyncio.Queue()
        request = Open(
            session_id,
            1,
            drafter_id,
            TokenIds(prompt_ids),
            TokenIds(committed_ids),
            sampling or Sampling(),
            TokenIds(stop_ids),
            max_tokens,
            free_run,
            min_tokens,
            logprobs,
            cache_scope,
            grammar,
            lookup=lookup,
        )
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._say("verifier", verifier_id, request)
                answer = await self._collect(request, verifier_id, speculation or Speculation(), queue)
        finally:
            del self._inboxes[session_id]
            close = Close(session_id, 1)
            await self._say("verifier", verifier_id, close)
            if drafter_id:
                await self._say("drafter", drafter_id, close)
        return answer

    async def decide(self, drafter_id: str, verifier_id: str, window: int, chunk: int, free_run: bool) -> None:
        """Says, as a controller does, how far the drafter may run ahead."""
        self._num_decisions += 1
        decision = WindowDecision(drafter_id, verifier_id, window, chunk, free_run, "test", self._num_decisions)
        await self._say("drafter", drafter_id, decision)

    async def _collect(
        self, request: Open, verifier_id: str, speculation: Speculation, queue: asyncio.Queue[object]
    ) -> Generated:
        answer = Generated(list(request.committed_ids))
        while answer.finish is None:
            message = await queue.get()
            if isinstance(message, Failure):
                raise RuntimeError(f"{message.code}: {message.message}")
            if isinstance(message, Opened):
                answer.fingerprint = message.fingerprint
                await self._speculate(request, verifier_id, speculation)
            if isinstance(message, Verdict):
                have = len(request.prompt_ids) + len(answer.token_ids)
                assert message.base <= have, "a gap"
                new = message.token_ids[have - message.base :]
                answer.token_ids.extend(new)
                answer.logprobs.extend(message.logprobs[-len(new) :] if message.logprobs and new else [])
                answer.finish, answer.tally = message.finish, message.tally
                answer.num_verdicts += 1
        return answer

    async def _speculate(self, request: Open, verifier_id: str, speculation: Speculation) -> None:
        if request.drafter_id is None:
            return
        message = Speculate(
            request.session_id,
            request.term,
            verifier_id,
            request.prompt_ids,
            request.committed_ids,
            request.sampling,
            request.stop_ids,
            request.max_tokens,
            speculation,
            request.min_tokens,
            request.cache_scope,
            request.grammar,
        )
        await self._say("drafter", request.drafter_id, message)

    async def _say(self, service: Service, instance_id: str, message: Message) -> None:
        await self._bus.publish(subjects.to(service, instance_id, type(message), self.instance_id), message)


@dataclass(slots=True)
class Cell:
    """What runs: verifiers and drafters by their order, and a client."""

    verifiers: list[Verifier]
    drafters: list[Drafter]
    client: Client

    @property
    def engines(self) -> list[TorchEngine]:
        """The built-in engines."""
        return [cast("TorchEngine", verifier.engine) for verifier in self.verifiers]

    def verifier_id(self, number: int = 0) -> str:
        return self.verifiers[number].instance_id

    def drafter_id(self, number: int = 0) -> str:
        return self.drafters[number].instance_id


@asynccontextmanager
async def running(
    connect: Callable[[], Bus],
    targets: Sequence[TargetModel | Engine[Any]],
    drafts: Sequence[DraftModel],
    draft: str = "in-process",
    **verifier_options: Any,
) -> AsyncIterator[Cell]:
    """Runs a verifier for each target and a drafter for each draft, and a client. `connect` makes a bus for each.

    targets: models for the built-in engine, or engines. draft: folder with the drafts' tokenizer, for grammars.
    """
    verifiers = [make_verifier(connect(), model, f"v{i}", **verifier_options) for i, model in enumerate(targets)]
    drafters = [make_drafter(connect(), model, f"d{i}", draft) for i, model in enumerate(drafts)]
    client = Client(connect())
    await client.start()
    parts: list[Verifier | Drafter] = [*verifiers, *drafters]
    tasks = [asyncio.create_task(part.run()) for part in parts]
    try:
        await client.wait_for({part.instance_id for part in parts})
        yield Cell(verifiers, drafters, client)
        for task in tasks:
            assert not task.done(), f"a service ended: {task}"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def make_verifier(bus: Bus, target: TargetModel | Engine[Any], name: str, **options: Any) -> Verifier:
    lease: dict[str, Any] = {
        "lease_s": ANSWER_S,
        "drafter_lease_s": ANSWER_S,  # without free run the verifier waits for a drafter, however busy the machine is
    }  # the client here sends no heartbeats, and passes may be slow on a busy machine
    settings = VerifierSettings(name=name, target="in-process", **(lease | options))
    engine = cast("Engine[Any]", target) if hasattr(target, "info") else built_in(target, settings.kv_tokens)
    return Verifier(subjects.new_instance_id(name), settings, engine, bus, VerifierMetrics(CollectorRegistry()))


def built_in(target: Any, kv_tokens: int) -> TorchEngine:
    """The built-in engine over a model."""
    from services.cloud_verifier.torch_engine.engine import TorchEngine

    return TorchEngine(target, kv_tokens)


def make_drafter(bus: Bus, model: DraftModel, name: str, draft: str = "in-process") -> Drafter:
    # Nobody repeats decisions here, so they must hold for a whole test on a busy machine.
    settings = DrafterSettings(name=name, draft=draft, decision_ttl_s=ANSWER_S)
    return Drafter(subjects.new_instance_id(name), settings, model, bus, DrafterMetrics(CollectorRegistry()))
