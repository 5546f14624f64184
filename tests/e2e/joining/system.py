"""A system with API keys and NATS users, and drafters that users start with `dsd draft`, as processes.

They reach it over relays with 30 ms, which may listen at another address than loopback, for another network namespace.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import pytest

from benchmarks.harness.link import LinkConditions
from benchmarks.harness.relay import Address, Relay
from services.gateway.admission.api_keys import digest, new_key
from services.local.nats_server import Access, free_port, write_secured
from services.local.pair import default_pair
from services.local.system import System, SystemPlan, running
from shared.runtime.nats_keys import new_seed, public_key
from tests.plugins.nats import NatsServer

ROOT = Path(__file__).parents[3]
RTT_MS, WAIT_S, END_S = 30.0, 90.0, 60.0
OWNERS = ("alice", "bob")
LOOPBACK = "127.0.0.1"
Told = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a user's machine is. prefix: of its commands. reached_at: the system's address as seen from there."""

    reached_at: str = LOOPBACK
    own: str = LOOPBACK
    prefix: tuple[str, ...] = ()


@dataclass
class Keyed:
    """The running system as its users see it."""

    system: System
    nats: NatsServer
    folder: Path
    place: Place
    relays: dict[str, Relay]
    api_keys: dict[str, str] = field(default_factory=dict)  # by owner
    drafter_keys: dict[str, str] = field(default_factory=dict)

    @property
    def gateway_url(self) -> str:
        """As seen from the users' machine."""
        return f"http://{self.place.reached_at}:{self.relays['gateway'].port}"

    @property
    def nats_url(self) -> str:
        return f"wss://{self.place.reached_at}:{self.relays['nats'].port}"

    def environment(self, owner: str, **changes: str) -> dict[str, str]:
        """Of a user's commands."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DSD_")}
        keys = {"DSD_API_KEY": self.api_keys[owner], "DSD_DRAFTER_KEY": self.drafter_keys[owner]}
        quick = {"DSD_HEARTBEAT_S": "0.2", "DSD_LOG_FORMAT": "json", "DSD_URL": self.gateway_url, "COLUMNS": "200"}
        return {**kept, **keys, **quick, **changes}

    async def dsd(self, owner: str, *argv: str, **changes: str) -> tuple[int, str, str]:
        """A command of a user to its end: status, output, errors."""
        pipe = asyncio.subprocess.PIPE
        process = await self._start(owner, argv, changes, stdout=pipe, stderr=pipe)
        async with asyncio.timeout(WAIT_S):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    @asynccontextmanager
    async def drafting(self, owner: str, draft: Path, port: int = 0) -> AsyncIterator[None]:
        """`dsd draft` of a user, until it is live; it must end in order afterwards."""
        settings = {"DSD_HTTP_HOST": self.place.own, "DSD_HTTP_PORT": str(port), "DSD_NUM_THREADS": "1"}
        log = self.folder / f"{owner}.log"
        with log.open("wb") as out:
            argv = ("draft", "--draft", str(draft))
            process = await self._start(owner, argv, settings, stdout=out, stderr=out)
        try:
            await self.until_live(f"key-{owner}", process)
            yield
            process.terminate()
            async with asyncio.timeout(END_S):
                status = await process.wait()
            assert status == 0, await asyncio.to_thread(log.read_text)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            await self.until_gone(f"key-{owner}")

    async def _start(
        self, owner: str, argv: Sequence[str], changes: dict[str, str], **pipes: Any
    ) -> asyncio.subprocess.Process:
        command = [*self.place.prefix, sys.executable, "-m", "client", *argv]
        env = self.environment(owner, **changes)
        return await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=env, **pipes)

    async def until_live(self, name: str, process: asyncio.subprocess.Process) -> None:
        async with asyncio.timeout(WAIT_S):
            while name not in await self.drafters():
                assert process.returncode is None, "it has ended: its log tells why"
                await asyncio.sleep(0.1)

    async def until_gone(self, name: str) -> None:
        """Else the next process of that name would be taken for live."""
        async with asyncio.timeout(WAIT_S):
            while name in await self.drafters():  # noqa: ASYNC110  what other processes do sets no event here
                await asyncio.sleep(0.1)

    async def drafters(self) -> list[str]:
        """Names of the live ones."""
        async with self.http("alice") as http, http.get("/dsd/fleet") as response:
            return [each["name"] for each in (await response.json())["drafters"]]

    def http(self, owner: str) -> aiohttp.ClientSession:
        headers = {"Authorization": f"Bearer {self.api_keys[owner]}"}
        return aiohttp.ClientSession(self.system.plan.address, headers=headers)

    async def ask(self, owner: str, prompt: str, speculation: str, **more: Any) -> tuple[str, Told]:
        """A text, and what speculation did for it."""
        body = {"messages": [{"role": "user", "content": prompt}], "model": self.system.plan.pair.model_name}
        body |= {"max_tokens": 32, "temperature": 0.0, "seed": 0, "dsd": {"speculation": speculation}, **more}
        async with self.http(owner) as http, http.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            told = await response.json()
        return str(told["choices"][0]["message"]["content"]), told["dsd"]


def write_keys(file: Path, api_keys: dict[str, str], drafter_keys: dict[str, str]) -> None:
    """The gateway's key file: each owner has a drafter."""
    file.write_text(
        "".join(
            f'[{owner}]\nsha256 = "{digest(key).hex()}"\n'
            f'own_drafters = {{key-{owner} = "{public_key(drafter_keys[owner])}"}}\n'
            for owner, key in api_keys.items()
        )
    )


@asynccontextmanager
async def keyed_system(models: Path, folder: Path, place: Place) -> AsyncIterator[Keyed]:
    """One verifier, a gateway, no drafter, a NATS server that listens to WebSockets with TLS."""
    api_keys, drafter_keys = {owner: new_key() for owner in OWNERS}, {owner: new_seed() for owner in OWNERS}
    file = folder / "keys.toml"
    write_keys(file, api_keys, drafter_keys)
    plan = SystemPlan(default_pair(models, (), 0), port=free_port())
    access = write_secured(folder / "nats", free_port(), plan.names, str(file), (LOOPBACK, place.reached_at))
    nats = NatsServer(folder / "nats", (folder / "nats/nats.conf").read_text())
    nats.start()
    gateway = access.settings["gateway"]
    web = Address.of_url(gateway["DSD_DRAFTER_NATS_URL"])
    try:
        async with AsyncExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in {"DSD_HEARTBEAT_S": "0.2", "DSD_NUM_THREADS": "1"}.items():
                patch.setenv(name, value)
            patch.delenv("DSD_TARGET", raising=False)
            relays = {
                name: await stack.enter_async_context(Relay(address, LinkConditions(RTT_MS / 2), host=place.reached_at))
                for name, address in (("gateway", Address.of_url(plan.address)), ("nats", web))
            }
            gateway |= {
                "DSD_API_KEYS_FILE": str(file),
                "DSD_DRAFTER_NATS_URL": f"wss://{place.reached_at}:{relays['nats'].port}",
            }
            url = nats.url.replace("nats:", "tls:")
            plan = replace(plan, nats=Access(url, access.settings))
            system = await stack.enter_async_context(running(plan, folder / "run", print))
            yield Keyed(system, nats, folder, place, relays, api_keys, drafter_keys)
    finally:
        nats.stop(kill=True)


@contextmanager
def another_namespace() -> Iterator[Place]:
    """A network namespace that reaches this one over a pair of virtual interfaces, and nothing else."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        cannot("another network namespace needs root and the program ip (Debian: apt-get install iproute2)")
    network = f"10.213.{os.getpid() % 256}"  # systems of several test runs may be up at once
    name, here, there = f"dsd{os.getpid()}", f"{network}.1", f"{network}.2"
    link, far = f"{name}a", f"{name}b"
    try:
        try:
            ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            cannot(f"no network namespace can be made here: {error.stderr.strip()}")
        ip("link", "add", link, "type", "veth", "peer", "name", far, "netns", name)
        ip("address", "add", f"{here}/30", "dev", link)
        ip("link", "set", link, "up")
        for argv in (
            ("address", "add", f"{there}/30", "dev", far),
            ("link", "set", far, "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", name, *argv)
        yield Place(here, there, ("ip", "netns", "exec", name))
    finally:
        with suppress(subprocess.CalledProcessError):
            ip("netns", "delete", name)


def cannot(reason: str) -> NoReturn:
    """Skips the test, or fails it where everything must run."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True, text=True, timeout=20)
