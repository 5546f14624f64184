"""How the drafter of an API key would fare: its key, its draft's vocabulary, and the NATS server's answers.

The client speaks HTTP alone: `python -m services.edge_drafter.access` asks NATS, where the drafter is installed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from client.doctor.findings import Finding, Level
from client.drafting.drafter import DRAFTER_KEY_VARIABLE, CannotDraft, check_installed, environment, settings_of
from client.gateway import ClientError, GatewayClient, RequestRefused
from client.wire import DrafterJoin, FleetStatus

MODULE = "services.edge_drafter.access"
LIMIT_S = 60.0


class Access(msgspec.Struct):
    """The answer of MODULE."""

    vocabulary: str
    draft_error: str
    error: str
    rtt_ms: float
    denied: list[str]
    granted: list[str]


@dataclass(frozen=True, slots=True)
class Joiner:
    """A drafter that may join."""

    name: str
    join: DrafterJoin
    draft: Path | None


async def look(gateway: GatewayClient, fleet: FleetStatus | None, draft: Path | None) -> list[Finding]:
    """What concerns the key's own drafters. draft: the folder of a draft, to compare its vocabulary."""
    try:
        join = await gateway.drafter_join()
    except RequestRefused as refusal:
        if refusal.code == "no_drafters":
            return [Finding("note", "drafter", "you can't add a drafter of your own", str(refusal))]
        return [Finding("wrong", "drafter", str(refusal), "update the gateway: it can't say how drafters join")]
    except ClientError as error:
        return [Finding("wrong", "drafter", str(error))]
    try:
        check_installed()
        settings = settings_of(join, None)
    except CannotDraft as error:
        level: Level = "wrong" if os.environ.get(DRAFTER_KEY_VARIABLE) else "note"
        return [Finding(level, "drafter", "NATS is not looked at", str(error))]
    joiner = Joiner(settings["DSD_NAME"], join, draft)
    access = await _asked(settings | ({"DSD_DRAFT": str(draft)} if draft else {}))
    if access is None:
        return [Finding("wrong", "drafter", "its NATS server could not be asked", f"run python -m {MODULE}")]
    return [*_vocabulary(joiner, access), *_nats(joiner, access), *_life(joiner, fleet)]


async def _asked(settings: dict[str, str]) -> Access | None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", MODULE, env={**environment(), **settings}, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            out, _ = await process.communicate()
        return msgspec.json.decode(out.splitlines()[-1], type=Access)
    except (TimeoutError, IndexError, msgspec.DecodeError):
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _vocabulary(joiner: Joiner, access: Access) -> Iterator[Finding]:
    if joiner.draft is None:
        return
    if access.draft_error:
        yield Finding("wrong", "vocabulary", access.draft_error, "name the folder of a draft with its tokenizer.json")
    elif access.vocabulary != joiner.join.vocabulary:
        text = f"the draft's is {access.vocabulary[:12]}, that of {joiner.join.model} {joiner.join.vocabulary[:12]}"
        yield Finding(
            "wrong", "vocabulary", text, "take a draft of that model (docs/models.md): this one guesses noise"
        )
    else:
        yield Finding("ok", "vocabulary", f"the draft has that of {joiner.join.model} ({access.vocabulary[:12]})")


def _nats(joiner: Joiner, access: Access) -> Iterator[Finding]:
    address, lowered = joiner.join.nats_url, access.error.lower()
    if access.error:
        if "authorization" in lowered:
            todo = f"let the operator add the public key of {joiner.name} to the NATS users, and reload them"
        elif "certificate" in lowered:
            todo = "let the operator set DSD_DRAFTER_NATS_CA, or a certificate for this address"
        else:
            todo = "is it running, and does a firewall or proxy let you through?"
        yield Finding("wrong", "NATS", f"{joiner.name} can't join {address}: {access.error}", todo)
        return
    yield Finding("ok", "NATS", f"{joiner.name} gets in at {address}, round trip {access.rtt_ms:.1f} ms")
    if access.denied:
        text = f"{joiner.name} may not use {', '.join(access.denied)}"
        yield Finding("wrong", "NATS rights", text, "write them again: python -m services.local.nats_users owned")
    if access.granted and joiner.join.own_drafters is None:
        text = "the server has no users: whoever reaches it reads all prompts"
        yield Finding("note", "NATS rights", text, "use it on one machine only, or start with --secure")
    elif access.granted:
        text = f"{joiner.name} may use {', '.join(access.granted)}, which is not its own"
        yield Finding("wrong", "NATS rights", text, "write them again: python -m services.local.nats_users owned")
    elif not access.denied:
        yield Finding("ok", "NATS rights", "it may say and hear what is its own, and nothing else")


def _life(joiner: Joiner, fleet: FleetStatus | None) -> Iterator[Finding]:
    if fleet is None:
        return
    live = next((each for each in fleet.drafters if each.name == joiner.name), None)
    if live is not None:
        text = f"{joiner.name} is live, round trip to its verifiers {live.rtt_ms:.0f} ms"
        yield Finding("ok", "drafter", text)
    elif os.environ.get(DRAFTER_KEY_VARIABLE):
        yield Finding("note", "drafter", f"{joiner.name} is not running", "start it with dsd draft")
