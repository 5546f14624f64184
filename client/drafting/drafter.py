"""dsd draft: joins the fleet of a gateway with a drafter on this machine, for the sessions of one API key.

Invariant: the drafter's key goes to the drafter alone, never to a gateway. Its process gets no API key.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from client.drafting.archive import fetched
from client.gateway import KEY_VARIABLE, ClientError, GatewayClient
from client.wire import DrafterJoin

DRAFTER_KEY_VARIABLE = "DSD_DRAFTER_KEY"
MODULE = "services.edge_drafter"
IS_CONSOLE_SHARED = sys.platform == "win32"  # it tells all its processes of Ctrl-C, whatever their group
PASSED_ON = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class CannotDraft(ClientError):
    """This machine, or its user, lacks what a drafter needs."""


@dataclass(frozen=True, slots=True)
class DrafterPlan:
    """A drafter to start. settings: its environment, beside that of this process."""

    name: str
    join: DrafterJoin
    settings: Mapping[str, str]


async def plan(gateway: GatewayClient, draft: Path | None, name: str | None) -> DrafterPlan:
    """What to start. draft: folder of the draft; None: the gateway names one. name: only where no key says it. Raises
    ClientError."""
    check_installed()
    join = await gateway.drafter_join()
    settings = settings_of(join, name)
    folder = draft if draft is not None else await fetched(join.draft_url, cache())
    return DrafterPlan(settings["DSD_NAME"], join, {**settings, "DSD_DRAFT": str(folder)})


def settings_of(join: DrafterJoin, name: str | None) -> dict[str, str]:
    """All settings but the draft. Raises CannotDraft."""
    key = os.environ.get(DRAFTER_KEY_VARIABLE, "") if join.own_drafters is not None else ""
    found = name or f"drafter-{secrets.token_hex(3)}" if join.own_drafters is None else own_name(join, key)
    if name not in (None, found):
        raise CannotDraft(f"the key in {DRAFTER_KEY_VARIABLE} is that of {found}: leave --name out")
    return {
        "DSD_NAME": found,
        "DSD_MODEL_NAME": join.model,
        "DSD_VOCABULARY": join.vocabulary,
        "DSD_NATS_URL": join.nats_url,
        "DSD_NATS_CA": join.nats_ca,
        "DSD_NATS_KEY": key,
    }


def environment() -> dict[str, str]:
    """That of this process, without keys."""
    return {name: value for name, value in os.environ.items() if name not in (KEY_VARIABLE, DRAFTER_KEY_VARIABLE)}


def check_installed() -> None:
    """Raises CannotDraft where the drafter's extra is not installed."""
    if not all(importlib.util.find_spec(each) for each in ("services", "onnxruntime", "llguidance")):
        raise CannotDraft("the drafter is not installed: install the extra draft of dsd-serving")


def own_name(join: DrafterJoin, key: str) -> str:
    """The name of the drafter whose key this is. Raises CannotDraft."""
    own = ", ".join(join.own_drafters or ())
    if not key:
        raise CannotDraft(f"set {DRAFTER_KEY_VARIABLE} to the key of one of the API key's drafters: {own}")
    public = public_key(key)
    for name, known in (join.own_drafters or {}).items():
        if known == public:
            return name
    raise CannotDraft(f"the key in {DRAFTER_KEY_VARIABLE} is of none of the API key's drafters: {own}")


def public_key(key: str) -> str:
    """Of an NKey seed. Raises CannotDraft, without the key in its message."""
    import nkeys  # loads libsodium

    try:
        return str(nkeys.from_seed(bytearray(key.encode())).public_key.decode())
    except (nkeys.NkeysError, ValueError):
        raise CannotDraft(f"{DRAFTER_KEY_VARIABLE} holds no drafter's key: one begins with SU") from None


def cache() -> Path:
    """The folder of drafts that were fetched."""
    from typer import get_app_dir

    return Path(os.environ.get("DSD_HOME") or get_app_dir("dsd")) / "drafts"


def run(drafter: DrafterPlan) -> int:
    """Runs the drafter to its end; returns its exit status. Its other settings are DSD_ variables, as always.

    Signals go on to it, also those that come before it runs: SIGINT as it is, others as SIGTERM. It has a process group
    of its own, so that a terminal's Ctrl-C does not reach it twice: the second signal would end it at once.
    """
    is_ended = False  # before it ran
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal is_ended
        if process is None:
            is_ended = True
        elif not IS_CONSOLE_SHARED:
            process.send_signal(number if number == signal.SIGINT else signal.SIGTERM)

    for each in PASSED_ON:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(each, pass_on)
    env = {**environment(), **drafter.settings}
    with subprocess.Popen([sys.executable, "-m", MODULE], env=env, process_group=0) as started:
        process = started
        if is_ended:
            process.terminate()
        status = process.wait()
        return status if status >= 0 else 128 - status
