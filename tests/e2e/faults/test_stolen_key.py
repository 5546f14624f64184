"""One drafter's key in the wrong hands, on a real nats-server with users, beside a gateway, a verifier and an honest
drafter: what the server lets its holder say changes no answer, and brings it no more prompts than its share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from nats.aio.msg import Msg
from prometheus_client import CollectorRegistry

from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.service import Verifier
from services.cloud_verifier.settings import VerifierSettings
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.service import Drafter
from services.edge_drafter.settings import DrafterSettings
from services.gateway.service import prepare
from services.gateway.settings import GatewaySettings
from services.local.nats_server import free_port, write_secured
from shared.bus import nats_bus
from shared.protocol import subjects
from shared.protocol.messages import (
    Failure,
    Heartbeat,
    Load,
    MalformedMessage,
    Opened,
    Report,
    Speculate,
    Verdict,
    decode,
    encode,
)
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics
from shared.service import live
from tests.fakes import VOCABULARY, FakeDraft, FakeTarget, fake_engine
from tests.gateway.tiny import make_folder
from tests.k8s.test_nats_rights import Guarded, User
from tests.plugins.nats import NatsServer

pytestmark = pytest.mark.timeout(240)

MODEL, THIEF = "tiny", "stolen"
NAMES = {"gateway": ["gateway"], "verifier": ["verifier-0"], "drafter": ["honest", THIEF]}
NUM_TOKENS, NUM_PROMPTS, PASS_S = 16, 24, 0.02
WAIT_S = 60.0


@dataclass
class World:
    """The running services, and the connection of who has the key."""

    gateway_id: str
    verifier: Verifier
    drafter: Drafter
    http: aiohttp.ClientSession
    user: User
    seen: set[str] = field(default_factory=set)  # sessions whose prompts the thief has read

    def read(self, packet: bytes) -> None:
        with suppress(MalformedMessage):
            message = decode(packet)
            if isinstance(message, Speculate):
                self.seen.add(message.session_id)

    async def say(self, heartbeat: Heartbeat) -> None:
        subject = subjects.broadcast(Heartbeat, "drafter", heartbeat.instance_id)
        await self.user.client.publish(subject, encode(heartbeat))

    async def ask(self, prompt: list[int], **dsd: object) -> str:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "seed": 0}
        async with self.http.post("/v1/completions", json={**body, "ignore_eos": True, "dsd": dsd}) as response:
            assert response.status == 200, await response.text()
            return str((await response.json())["choices"][0]["text"])

    async def ask_all(self, **dsd: object) -> list[str]:
        return await asyncio.gather(*(self.ask(prompt, **dsd) for prompt in prompts()))

    async def fleet(self) -> dict[str, list[str]]:
        """Names of live instances by service."""
        async with self.http.get("/dsd/fleet") as response:
            told = await response.json()
        return {service: [peer["name"] for peer in told[service]] for service in ("verifiers", "drafters")}

    async def joined(self, **names: list[str]) -> None:
        async with asyncio.timeout(WAIT_S):
            while await self.fleet() != names:  # noqa: ASYNC110  heartbeats set no event here
                await asyncio.sleep(0.05)


def prompts() -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(3, VOCABULARY) for _ in range(rng.randint(3, 12))] for _ in range(NUM_PROMPTS)]


@asynccontextmanager
async def running(folder: Path, access_of: Callable[[str], dict[str, Any]]) -> AsyncIterator[World]:
    port, stop, gateway_id = free_port(), asyncio.Event(), subjects.new_instance_id("gateway")
    target = make_folder(folder / "target")
    of_gateway = GatewaySettings(target=str(target), http_port=port, drain_s=1.0, **access_of("gateway"))
    of_verifier = VerifierSettings(target="fake", **access_of("verifier-0"))
    of_drafter = DrafterSettings(draft="fake", **access_of("honest"))

    async def join(settings: ServiceSettings, instance_id: str) -> nats_bus.NatsBus:
        return await nats_bus.connect(settings, instance_id, BusMetrics(CollectorRegistry()))

    verifier_id, drafter_id = subjects.new_instance_id("verifier-0"), subjects.new_instance_id("honest")
    buses = [await join(of_verifier, verifier_id), await join(of_drafter, drafter_id)]
    engine = fake_engine(FakeTarget(pass_s=PASS_S))
    verifier = Verifier(verifier_id, of_verifier, engine, buses[0], VerifierMetrics(CollectorRegistry()))
    drafter = Drafter(drafter_id, of_drafter, FakeDraft(), buses[1], DrafterMetrics(CollectorRegistry()))
    start, app = prepare(of_gateway)
    lives = [
        asyncio.create_task(live(gateway_id, of_gateway, start, stop, app)),
        asyncio.create_task(verifier.run()),
        asyncio.create_task(drafter.run()),
    ]
    seed, ca = Path(access_of(THIEF)["nats_nkey_seed"]), Path(access_of(THIEF)["nats_ca"])
    user = User()
    await user.connect(Guarded(access_of(THIEF)["nats_url"], {THIEF: seed}, ca), THIEF)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            world = World(gateway_id, verifier, drafter, http, user)
            await is_up(http)
            await world.joined(verifiers=["verifier-0"], drafters=["honest"])
            yield world
            assert not any(task.done() for task in lives)
            stop.set()
            await asyncio.wait_for(lives[0], WAIT_S)
    finally:
        await user.client.close()
        for task in lives:
            task.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        for bus in buses:
            await bus.close()


async def is_up(http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(aiohttp.ClientError):
                if (await http.get("/readyz")).status == 200:
                    return
            await asyncio.sleep(0.05)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    folder = tmp_path / "nats"
    access = write_secured(folder, free_port(), NAMES)
    server = NatsServer(folder, (folder / "nats.conf").read_text())
    server.start()

    def access_of(name: str) -> dict[str, Any]:
        seed, ca = access.settings[name]["DSD_NATS_NKEY_SEED"], access.settings[name]["DSD_NATS_CA"]
        url = server.url.replace("nats:", "tls:")
        common = {"model_name": MODEL, "heartbeat_s": 2.0}  # three of them are missed on no busy machine
        return {"name": name, "nats_url": url, "nats_nkey_seed": seed, "nats_ca": ca, **common}

    try:
        async with running(tmp_path, access_of) as found:
            yield found
    finally:
        server.stop(kill=True)


def claims(**changes: object) -> list[Heartbeat]:
    """Heartbeats of one instance that is idle and can do all."""
    fields: dict[str, Any] = {
        "service": "drafter",
        "instance_id": subjects.new_instance_id(THIEF),
        "interval_s": 1.0,
        "models": [MODEL],
        "max_context": 1 << 48,
        "vocab_size": 1 << 48,
        "fingerprint": "fake-numerics",
        "load": Load(),
        "draining": False,
    }
    return [Heartbeat(**fields | changes)]


CLAIMS: dict[str, Callable[[], list[Heartbeat]]] = {
    "sixty idle nonces of its name": lambda: [claims()[0] for _ in range(60)],
    "a vocabulary of one token": lambda: claims(vocab_size=1),
    "a heartbeat an hour": lambda: claims(interval_s=3600.0),
}


@pytest.mark.parametrize("beats", CLAIMS.values(), ids=CLAIMS.keys())
async def test_every_answer_is_right_and_an_impostor_reads_its_share_of_the_prompts(
    world: World, beats: Callable[[], list[Heartbeat]]
) -> None:
    expected = await world.ask_all(speculation="off")

    async def listen(message: Msg) -> None:
        world.read(message.data)

    await world.user.client.subscribe(f"dsd.v1.drafter.{THIEF}.*.>", cb=listen)
    lies = beats()

    async def lie() -> None:
        while True:
            for each in lies:
                await world.say(each)
            await asyncio.sleep(0.2)

    lying = asyncio.create_task(lie())
    await world.joined(verifiers=["verifier-0"], drafters=["honest", THIEF])
    assert await world.ask_all() == expected
    lying.cancel()
    assert 0 < len(world.seen) <= NUM_PROMPTS // 2 + 2, "one of two; some may come after others have ended"


async def test_the_server_lets_it_say_and_hear_nothing_in_the_name_of_others(world: World) -> None:
    expected = await world.ask_all(speculation="off")
    client, nonce = world.user.client, "0123456789ab"
    me = f"{THIEF}.{nonce}"
    beat = encode(claims(service="verifier", instance_id=me)[0])
    said = [subjects.broadcast(Heartbeat, service, me) for service in ("verifier", "gateway", "controller")]
    for kind in (Verdict, Opened, Failure):
        others = (world.verifier.instance_id, world.drafter.instance_id)
        said += [subjects.to("gateway", world.gateway_id, kind, other) for other in others]
    said += [subjects.to("gateway", world.gateway_id, kind, me) for kind in (Verdict, Opened)]
    said.append(subjects.broadcast(Heartbeat, "drafter", world.drafter.instance_id))
    said.append(subjects.to("controller", me, Report, world.drafter.instance_id))
    heard = [
        subjects.inbox("drafter", world.drafter.instance_id),
        subjects.inbox("verifier", world.verifier.instance_id),
        subjects.inbox("gateway", world.gateway_id),
        *(subjects.all_broadcasts(Heartbeat, service) for service in ("gateway", "verifier", "drafter")),
        subjects.all_said("controller", Report),
        "dsd.v1.>",
    ]
    asking = asyncio.create_task(world.ask_all())
    for subject in said:
        await client.publish(subject, beat)
    await client.publish(subjects.broadcast(Heartbeat, "drafter", me), beat)  # this it may, and nobody believes it
    for subject in heard:
        await client.subscribe(subject)
    await world.user.settled()
    assert set(said) <= world.user.denied("publish")
    assert {subject.lower() for subject in heard} == world.user.denied("subscription")
    assert await asking == expected
    assert await world.fleet() == {"verifiers": ["verifier-0"], "drafters": ["honest"]}
