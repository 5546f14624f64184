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


async def look(gateway: GatewayClient, fleet: FleetStatus | None, draft: Path | None) -> list[Finding]:
    """What concerns the key's own drafters. draft: the folder of a draft, to compare its vocabulary."""
    try:
        join = await gateway.drafter_join()
        check_installed()
    except ClientError as error:
        unseen = Finding("note", "vocabulary", f"that of {draft} is not looked at: {error}")
        return [_unlooked(error), *([unseen] if draft else [])]
    of_draft = {"DSD_DRAFT": str(draft)} if draft else {}
    try:
        settings = settings_of(join, None)
    except CannotDraft as error:
        level: Level = "wrong" if os.environ.get(DRAFTER_KEY_VARIABLE) else "note"
        found = [Finding(level, "drafter", "NATS is not looked at", str(error))]
        return [*found, *_vocabulary(join, await _asked(of_draft | {"DSD_JOINS": "false"}))] if draft else found
    access = await _asked(settings | of_draft)
    joiner = Joiner(settings["DSD_NAME"], join)
    return [*(_vocabulary(join, access) if draft else ()), *_nats(joiner, access), *_life(joiner, fleet)]


def _unlooked(error: ClientError) -> Finding:
    """Why nothing can be said of the key's drafters."""
    if isinstance(error, CannotDraft):
        return Finding("note", "drafter", "NATS is not looked at", str(error))
    if not isinstance(error, RequestRefused):
        return Finding("wrong", "drafter", str(error))
    if error.code == "no_drafters":
        return Finding("note", "drafter", "you can't add a drafter of your own", str(error))
    is_old = error.status == 404
    todo = "update the gateway: it can't say how drafters join" if is_old else "ask again, or read the gateway's log"
    return Finding("wrong", "drafter", str(error), todo)


async def _asked(settings: dict[str, str]) -> Access | str:
    """What MODULE finds, or why it has no answer."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", MODULE, env={**environment(), **settings}, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            out, errors = await process.communicate()
        return msgspec.json.decode(out.splitlines()[-1], type=Access)
    except TimeoutError:
        return f"no answer in {LIMIT_S:g} s"
    except (IndexError, msgspec.DecodeError):
        lines = errors.decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"it ended with status {process.returncode}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _vocabulary(join: DrafterJoin, access: Access | str) -> Iterator[Finding]:
    if isinstance(access, str):
        yield Finding("wrong", "vocabulary", f"the draft could not be looked at: {access}")
    elif access.draft_error:
        yield Finding("wrong", "vocabulary", access.draft_error, "name the folder of a draft with its tokenizer.json")
    elif access.vocabulary != join.vocabulary:
        text = f"the draft's is {access.vocabulary[:12]}, that of {join.model} {join.vocabulary[:12]}"
        todo = "take a draft of that model (docs/models.md): this one guesses noise"
        yield Finding("wrong", "vocabulary", text, todo)
    else:
        yield Finding("ok", "vocabulary", f"the draft has that of {join.model} ({access.vocabulary[:12]})")


def _nats(joiner: Joiner, access: Access | str) -> Iterator[Finding]:
    if isinstance(access, str):
        yield Finding("wrong", "NATS", f"it could not be asked: {access}")
        return
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
        yield Finding("wrong", "NATS rights", text, "write them again: python -m services.local.nats_users keys")
    if access.granted and joiner.join.own_drafters is None:
        text = "the server has no users: whoever reaches it reads all prompts"
        yield Finding("note", "NATS rights", text, "use it on one machine only, or start with --secure")
    elif access.granted:
        text = f"{joiner.name} may use {', '.join(access.granted)}, which is not its own"
        yield Finding("wrong", "NATS rights", text, "write them again: python -m services.local.nats_users keys")
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
