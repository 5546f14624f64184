"""`dsd doctor` on a real system: nothing is wrong with a whole one, and each thing that is broken is named."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from benchmarks.harness.relay import Address
from client.doctor.examination import clock, live
from client.wire import DrafterStatus, FleetStatus, GatewayStatus, PeerStatus
from shared.runtime.nats_keys import new_seed, public_key
from tests.e2e.joining.meddler import meddling
from tests.e2e.joining.system import Keyed, Place, keyed_system
from tests.e2e.processes import until

pytestmark = pytest.mark.timeout(400)
on_the_system = pytest.mark.asyncio(loop_scope="module")

LINE = re.compile(r"(ok|note|wrong) +(\S+(?: \S+)?)  +(.+)")
UNKNOWN = "dsd-" + "x" * 43


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(default_models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Keyed]:
    async with keyed_system(default_models, tmp_path_factory.mktemp("doctor"), Place()) as system:
        yield system


async def examined(keyed: Keyed, *argv: str, **changes: str) -> tuple[int, dict[tuple[str, str], str]]:
    """The exit status, and the findings by level and check."""
    status, out, errors = await keyed.dsd("alice", "doctor", *argv, **changes)
    found = [LINE.fullmatch(line) for line in out.splitlines()]
    assert found, errors
    assert all(found), out
    return status, {(each[1], each[2].strip()): each[3] for each in found if each}


def wrong(findings: dict[tuple[str, str], str]) -> list[str]:
    return [check for level, check in findings if level == "wrong"]


@on_the_system
async def test_nothing_is_wrong_with_a_whole_system(keyed: Keyed, default_models: Path) -> None:
    draft = default_models / "draft-int8"
    async with keyed.drafting("alice", draft):
        status, found = await examined(keyed, "--draft", str(draft))
    assert (status, wrong(found)) == (0, []), found
    checks = {"gateway", "clock", "API key", "verifiers", "drafters", "vocabulary", "NATS", "NATS rights", "lossless"}
    assert checks | {"drafter", "speculation"} == {check for level, check in found if level == "ok"}
    assert "key-alice" in found["ok", "speculation"]
    round_trip = re.search(r"round trip ([\d.]+) ms", found["ok", "NATS"])
    assert round_trip is not None
    assert float(round_trip[1]) >= 30.0, "the relay's"


@on_the_system
@pytest.mark.parametrize(
    ("changes", "check", "told"),
    [
        ({"DSD_API_KEY": UNKNOWN}, "API key", "is not valid"),
        ({"DSD_API_KEY": ""}, "API key", "no API key is set in DSD_API_KEY"),
        ({"DSD_DRAFTER_KEY": "SUNDRY"}, "drafter", "holds no drafter's key"),
    ],
)
async def test_a_wrong_key_is_named(keyed: Keyed, changes: dict[str, str], check: str, told: str) -> None:
    status, found = await examined(keyed, **changes)
    assert (status, wrong(found)) == (1, [check])
    assert told in found["wrong", check]


@on_the_system
async def test_where_no_gateway_answers_it_says_so(keyed: Keyed) -> None:
    status, _, errors = await keyed.dsd("alice", "doctor", DSD_URL="http://127.0.0.1:1")
    assert (status, errors) == (3, "dsd: Can't connect to http://127.0.0.1:1: Connection refused\n")
    web = keyed.system.children["verifier-0"].urls[-1]
    status, found = await examined(keyed, DSD_URL=web)
    assert (status, wrong(found)) == (1, ["gateway"])
    assert "the address of a DSD gateway" in found["wrong", "gateway"]


@on_the_system
async def test_a_draft_of_another_vocabulary_is_named(keyed: Keyed, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    status, found = await examined(keyed, "--draft", str(tmp_path))
    assert (status, wrong(found)) == (1, ["vocabulary"])
    status, found = await examined(keyed, "--draft", str(tmp_path / "missing"))
    assert "tokenizer.json can't be read" in found["wrong", "vocabulary"]


@on_the_system
async def test_a_nats_server_that_is_away_or_does_not_know_the_drafter_is_named(keyed: Keyed) -> None:
    relay = keyed.relays["nats"]
    target, relay.target = relay.target, Address("127.0.0.1", 1)
    try:
        status, found = await examined(keyed)
    finally:
        relay.target = target
    assert (status, wrong(found)) == (1, ["NATS"])
    assert "firewall" in found["wrong", "NATS"]
    another = public_key(new_seed())
    with changed(keyed, "users.conf", r"U\w+(?=, permissions: \$rights-key-alice,)", another):
        status, found = await examined(keyed)
    assert (status, wrong(found)) == (1, ["NATS"])
    assert "add the public key of key-alice" in found["wrong", "NATS"]


@on_the_system
async def test_rights_that_lack_or_grant_too_much_are_named(keyed: Keyed) -> None:
    with changed(keyed, "users.conf", r'.*"dsd\.v1\.verifier\.\*\.\*\.draft\.key-alice\.\*"\n', ""):
        status, found = await examined(keyed)
    assert (status, wrong(found)) == (1, ["NATS rights"])
    assert "key-alice may not use dsd.v1.verifier." in found["wrong", "NATS rights"]
    with changed(keyed, "users.conf", r"dsd\.v1\.drafter\.key-alice\.\*\.>", "dsd.v1.drafter.>"):
        status, found = await examined(keyed)
    assert (status, wrong(found)) == (1, ["NATS rights"])
    assert "which is not its own" in found["wrong", "NATS rights"]
    assert wrong((await examined(keyed))[1]) == [], "mended"


@on_the_system
async def test_a_system_without_a_verifier_and_a_drafter_of_another_model_are_named(
    keyed: Keyed, default_models: Path
) -> None:
    verifier = keyed.system.children["verifier-0"]
    assert verifier.pid is not None

    async def num_verifiers() -> int:
        async with keyed.http("alice") as http, http.get("/dsd/fleet") as response:
            return len((await response.json())["verifiers"])

    async def is_gone() -> bool:
        return await num_verifiers() == 0

    async def is_back() -> bool:
        return await num_verifiers() == 1

    async with a_drafter_of(keyed, "bob", "another-model", default_models / "draft-int8"):
        os.killpg(verifier.pid, signal.SIGSTOP)
        try:
            await until(is_gone, 30, "the verifier stays")
            status, found = await examined(keyed)
        finally:
            os.killpg(verifier.pid, signal.SIGCONT)
    assert (status, wrong(found)) == (1, ["verifiers", "drafters"])
    assert "key-bob drafts for another-model, not for smollm2-135m" in found["wrong", "drafters"]
    await until(is_back, 30, "the verifier does not come back")


@on_the_system
async def test_a_clock_that_is_wrong_and_a_text_that_speculation_changes_are_named(keyed: Keyed) -> None:
    async with meddling(keyed.gateway_url, skew_s=-3600.0) as address:
        status, found = await examined(keyed, DSD_URL=address)
    assert (status, wrong(found)) == (1, ["clock"])
    assert re.search(r"36\d\d s ahead of the gateway", found["wrong", "clock"])
    async with meddling(keyed.gateway_url, changes_text=True) as address:
        status, found = await examined(keyed, DSD_URL=address)
    assert (status, wrong(found)) == (1, ["lossless"])


@contextmanager
def changed(keyed: Keyed, file: str, pattern: str, by: str) -> Iterator[None]:
    """The NATS server runs with another file meanwhile."""
    path, configuration = keyed.folder / "nats" / file, (keyed.folder / "nats/nats.conf").read_text()
    text = path.read_text()
    new, num = re.subn(pattern, by, text)
    assert num == 1
    try:
        path.write_text(new)
        keyed.nats.reload(configuration)
        yield
    finally:
        path.write_text(text)
        keyed.nats.reload(configuration)


@asynccontextmanager
async def a_drafter_of(keyed: Keyed, owner: str, model: str, draft: Path) -> AsyncIterator[None]:
    """A drafter with its owner's key, for another model than it should be."""
    settings = {"DSD_NATS_KEY": keyed.drafter_keys[owner], "DSD_NAME": f"key-{owner}", "DSD_MODEL_NAME": model}
    settings |= {"DSD_NATS_URL": keyed.nats_url, "DSD_NATS_CA": str(keyed.folder / "nats/ca.crt")}
    argv = [sys.executable, "-m", "services.edge_drafter", "--draft", str(draft)]
    process = await asyncio.create_subprocess_exec(*argv, env=keyed.environment(owner, **settings))
    try:
        await keyed.until_live(f"key-{owner}", process)
        yield
    finally:
        process.terminate()
        await process.wait()
        await keyed.until_gone(f"key-{owner}")


def test_clocks_may_differ_by_what_the_header_does_not_tell() -> None:
    assert [clock(1000.0, now).level for now in (994.0, 996.0, 1000.9, 1005.0, 1007.0)] == [
        "wrong", "ok", "ok", "ok", "wrong",
    ]  # fmt: skip
    assert clock(None, 0.0).level == "note"


def peer(name: str, model: str = "tiny") -> PeerStatus:
    return PeerStatus(name, f"{name}.1", [model], "", 512, 0, 8, 0, 0, 0, 0, 1.0, 1.0, False, 10.0)


@pytest.mark.parametrize(("acceptance", "level"), [(None, "ok"), (0.6, "ok"), (0.01, "wrong")])
def test_a_drafter_whose_guesses_are_noise_is_named(acceptance: float | None, level: str) -> None:
    drafter = DrafterStatus(
        "d", "d.1", ["tiny"], "", 512, 0, 8, 0, 0, 0, 0, 1.0, 1.0, False, 10.0, acceptance=acceptance
    )
    fleet = FleetStatus(GatewayStatus("g", "tiny", 0, 8, 0), [peer("v")], [drafter], [], [])
    assert [finding.level for finding in live(fleet)] == ["ok", level]
