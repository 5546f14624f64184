"""All services in one process with tiny models, each with its own key at a nats-server with users and TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry
from transformers.models.llama import LlamaConfig

from benchmarks.hostile.system import HOSTILE
from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.service import Verifier
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine.engine import TorchEngine
from services.cloud_verifier.torch_engine.model import load_target
from services.edge_drafter.graphs.graph import DraftCache
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.model import DraftModel, DraftRow
from services.edge_drafter.service import Drafter
from services.edge_drafter.settings import DrafterSettings
from services.gateway.http.endpoints.joining import Joining
from services.gateway.http.routes import Routes, make_app
from services.gateway.service import Gateway, formats_of, make_authenticator
from services.gateway.settings import GatewaySettings
from services.gateway.text.tokenizer import load_tokenizer
from services.local.nats_server import Access, free_port, write_secured
from services.window_controller.reloads import Reloads
from services.window_controller.service import WindowController
from services.window_controller.settings import ControllerSettings
from shared.bus import nats_bus
from shared.protocol.subjects import new_instance_id
from shared.runtime.config import ServiceSettings
from shared.runtime.health import Health
from shared.runtime.metrics import BusMetrics
from shared.service import Context
from tests.gateway.fakes import MODEL, VOCABULARY
from tests.gateway.tiny import make_folder
from tests.plugins.nats import NatsServer
from tests.verifier.torch_engine.tiny_models import LLAMA_SHAPE, save_model

NAMES = {
    "gateway": ["gateway"],
    "verifier": ["verifier-0"],
    "drafter": ["drafter-0", "drafter-1"],
    "controller": ["controller"],
}
FAST = {"heartbeat_s": 0.2}


class RandomDraft:
    """A draft model that guesses random ids."""

    name, vocab_size, max_context, max_rows = "random", VOCABULARY, 1024, 16
    num_nodes: ClassVar[dict[str, int]] = {}
    kv_bytes = 0

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)

    def new_cache(self, capacity: int) -> DraftCache:
        return DraftCache(capacity)

    def num_caches(self, num_used: int, length: int) -> int:
        return num_used

    def step(self, rows: Sequence[DraftRow]) -> list[np.ndarray]:
        for row in rows:
            row.cache.length = row.start + len(row.token_ids)
        return list(self._random.random((len(rows), VOCABULARY), dtype=np.float32))


@dataclass
class SmallSystem:
    """A running system. ended: what a service ended with."""

    access: Access
    folder: Path
    url: str = ""
    registries: dict[str, CollectorRegistry] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def context(self, name: str) -> Context:
        settings = self.access.settings[name]
        secured = ServiceSettings(
            nats_url=self.access.url, nats_nkey_seed=settings["DSD_NATS_NKEY_SEED"], nats_ca=settings["DSD_NATS_CA"]
        )
        registry = self.registries[name] = CollectorRegistry()
        instance_id = new_instance_id(name)
        bus = await nats_bus.connect(secured, instance_id, BusMetrics(registry))
        return Context(instance_id, bus, registry, Health(registry))

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self.tasks[name] = asyncio.create_task(work, name=name)

    def dropped(self, name: str) -> float:
        """Messages that the bus of a service dropped, for whatever reason."""
        families = [each for each in self.registries[name].collect() if each.name == "dsd_bus_dropped_messages"]
        return sum(sample.value for each in families for sample in each.samples if sample.name.endswith("_total"))

    def failed(self, name: str) -> float:
        """Messages on which a handler of a service raised."""
        return (
            self.registries[name].get_sample_value("dsd_bus_dropped_messages_total", {"reason": "handler failed"})
            or 0.0
        )


@asynccontextmanager
async def small_system(folder: Path) -> AsyncIterator[SmallSystem]:
    names = {kind: list(dict.fromkeys([*own, HOSTILE[kind]])) for kind, own in NAMES.items()}
    access = write_secured(folder / "nats", free_port(), names)
    server = NatsServer(folder / "nats", (folder / "nats" / "nats.conf").read_text())
    server.start()
    system = SmallSystem(Access(server.url.replace("nats:", "tls:"), access.settings), folder)
    http = None
    try:
        await _start_verifier(system)
        for name in NAMES["drafter"]:
            settings = DrafterSettings(name=name, draft="random", model_name=MODEL, **FAST)
            context = await system.context(name)
            draft = cast(DraftModel, RandomDraft())
            metrics = DrafterMetrics(context.registry)
            system.start(name, Drafter(context.instance_id, settings, draft, context.bus, metrics).run())
        settings = ControllerSettings(**FAST)
        context = await system.context("controller")
        controller = await WindowController.start(settings, context, Reloads(lambda: settings))
        system.start("controller", controller.run())
        http = await _start_gateway(system)
        yield system
    finally:
        for task in system.tasks.values():
            task.cancel()
        await asyncio.gather(*system.tasks.values(), return_exceptions=True)
        if http is not None:
            await http.close()
        server.stop(kill=True)


async def _start_verifier(system: SmallSystem) -> None:
    config = LlamaConfig(**{**LLAMA_SHAPE, "vocab_size": VOCABULARY})
    model = load_target(str(save_model(config, system.folder / "model")), "cpu", "float32", 1)
    settings = VerifierSettings(
        name="verifier-0", target="tiny", model_name=MODEL, lease_s=2.0, kv_tokens=16384, **FAST
    )
    context = await system.context("verifier-0")
    engine, metrics = TorchEngine(model, settings.kv_tokens), VerifierMetrics(context.registry)
    system.start("verifier-0", Verifier(context.instance_id, settings, engine, context.bus, metrics).run())


async def _start_gateway(system: SmallSystem) -> TestServer:
    """Returns when the gateway knows the verifier and the drafters."""
    settings = GatewaySettings(
        target=str(make_folder(system.folder / "target")), model_name=MODEL, default_max_tokens=4, **FAST
    )
    routes, authenticator = Routes(settings.client_timeout_s, Joining(settings)), make_authenticator(settings)
    context, tokenizer = await system.context("gateway"), load_tokenizer(Path(settings.target))
    gateway = Gateway(settings, context, tokenizer, formats_of(settings, tokenizer), routes, authenticator)
    system.start("gateway", gateway.run())
    server = TestServer(make_app(routes, authenticator, settings.max_body_bytes))
    await server.start_server()
    system.url = str(server.make_url("")).rstrip("/")
    fleet = gateway.sessions.fleet
    async with asyncio.timeout(30):
        while (fleet.count("verifier"), fleet.count("drafter")) < (1, 2):  # noqa: ASYNC110  it sets no event
            await asyncio.sleep(0.05)
    return server
