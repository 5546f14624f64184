"""python -m services.edge_drafter.access: what a drafter with these settings would find, as one line of JSON.

It tells the draft's vocabulary, and whether the NATS server lets the drafter in, says and hears what it must, and no
more. `dsd doctor` reads it.

Invariant: nothing that it says reaches a service, and it hears nothing of others: its subjects name nobody.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry
from pydantic import Field

from shared.bus.nats_bus import BusClient, access_options
from shared.protocol.subjects import PREFIX, new_instance_id
from shared.runtime.config import ServiceSettings, load
from shared.runtime.metrics import BusMetrics
from shared.runtime.vocabulary import vocabulary_digest

CONNECT_S, FLUSH_S = 15, 5
NUM_ROUNDS = 5
NOBODY = "nobody.000000000000"
MUST_SAY, MUST_HEAR = (
    ("verifier.NOBODY.draft.ME", "gateway.NOBODY.failure.ME"),
    ("drafter.ME.>", "heartbeat.controller.>"),
)
MAY_NOT_SAY = ("verifier.NOBODY.draft.NOBODY", "gateway.NOBODY.verdict.ME", "drafter.NOBODY.speculate.ME")
MAY_NOT_HEAR = ("drafter.NOBODY.>", "gateway.NOBODY.>", "verifier.NOBODY.>")


class AccessSettings(ServiceSettings):
    """Those of a drafter, as far as they say who it is and where it joins."""

    draft: str = Field("", description="Folder of the draft; empty: none is looked at")
    joins: bool = Field(True, description="Whether the NATS server is asked, too")


class Access(msgspec.Struct, kw_only=True):
    """What was found. error: why the server was not joined. denied: rights that a drafter needs and this one lacks;
    granted: rights that no drafter should have."""

    vocabulary: str = ""
    draft_error: str = ""
    error: str = ""
    rtt_ms: float = 0.0
    denied: list[str] = []
    granted: list[str] = []


async def examine(settings: AccessSettings) -> Access:
    found = Access()
    if settings.draft:
        try:
            found.vocabulary = vocabulary_digest(Path(settings.draft))
        except ValueError as error:
            found.draft_error = str(error)
    if settings.joins:
        await _join(settings, found)
    return found


async def _join(settings: AccessSettings, found: Access) -> None:
    complaints: list[str] = []
    client = BusClient(BusMetrics(CollectorRegistry()))
    client.needs_tls = bool(settings.nats_ca)

    async def complain(error: Exception) -> None:
        complaints.append(str(error) or repr(error))

    try:
        async with asyncio.timeout(CONNECT_S):
            await client.connect(
                **access_options(settings), allow_reconnect=False, max_reconnect_attempts=1, error_cb=complain
            )
            await _try_rights(client, new_instance_id(settings.name), complaints, found)
    except TimeoutError:
        found.error = complaints[-1] if complaints else f"no answer in {CONNECT_S} s"
    except Exception as error:  # whatever the library raises, it is a finding
        found.error = complaints[-1] if complaints else str(error) or repr(error)
    finally:
        await client.close()


async def _try_rights(client: BusClient, own_id: str, complaints: list[str], found: Access) -> None:
    times = []
    for _ in range(NUM_ROUNDS):
        started = time.perf_counter()
        await client.flush(timeout=FLUSH_S)
        times.append(time.perf_counter() - started)
    found.rtt_ms = min(times) * 1e3

    def named(subjects: tuple[str, ...]) -> list[str]:
        return [f"{PREFIX}.{each.replace('ME', own_id).replace('NOBODY', NOBODY)}" for each in subjects]

    for subject in named(MUST_SAY + MAY_NOT_SAY):
        await client.publish(subject, b"")
    for subject in named(MUST_HEAR + MAY_NOT_HEAR):
        await client.subscribe(subject)
    for _ in range(2):  # a flush sends its ping before what is still buffered
        await client.flush(timeout=FLUSH_S)
    refused = set(re.findall(r'permissions violation for \w+ to "(.+?)"', "\n".join(complaints), re.IGNORECASE))
    refused = {subject.lower() for subject in refused}
    found.denied = [each for each in named(MUST_SAY + MUST_HEAR) if each.lower() in refused]
    found.granted = [each for each in named(MAY_NOT_SAY + MAY_NOT_HEAR) if each.lower() not in refused]


if __name__ == "__main__":
    settings = load(AccessSettings, sys.argv[1:], "python -m services.edge_drafter.access")
    print(msgspec.json.encode(asyncio.run(examine(settings))).decode())
