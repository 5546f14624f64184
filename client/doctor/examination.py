"""dsd doctor: looks at a deployment from a user's machine, from what is nearest to what needs all of it.

Invariant: each check tells one or more findings, and no check needs one that failed. Its only effects are two short
answers, and messages on NATS that reach nobody.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from client.ask import ask, conversation
from client.doctor import access
from client.doctor.findings import Finding
from client.gateway import KEY_VARIABLE, ClientError, GatewayClient, StreamedAnswer, Unreachable
from client.wire import AnswerOptions, DsdOptions, FleetStatus

NUM_ROUNDS = 5
MAX_SKEW_S = 5.0  # above the Date header's resolution of a second, and below what certificates forgive
MIN_ACCEPTANCE = 0.05  # of a drafter whose draft speaks the target's vocabulary at all
OF_A_PROXY = (502, 503, 504)
PROMPT, NUM_TOKENS = "Write one sentence about the sea.", 32


async def examined(gateway: GatewayClient, draft: Path | None) -> AsyncIterator[Finding]:
    """Findings as they are made. Raises Unreachable if there is no gateway, which leaves nothing to look at."""
    probe = await gateway.probe("/v1/models")
    is_json = probe.body.lstrip().startswith(b"{")
    if probe.status in OF_A_PROXY and not is_json:
        text = f"a proxy answers at {gateway.address} with status {probe.status}: no gateway behind it is ready"
        yield Finding(
            "wrong", "gateway", text, "let the operator look at the gateways' /readyz, and at the proxy's log"
        )
        return
    if probe.status not in (200, 401, 503) or not is_json:
        text = f"{gateway.address} answers with status {probe.status}"
        yield Finding("wrong", "gateway", text, "give the address of a DSD gateway: --gateway, or DSD_URL")
        return
    if probe.status == 503:
        yield Finding("wrong", "gateway", f"{gateway.address} is starting or stopping", "ask again, or read its log")
        return
    times = [probe.seconds, *[(await gateway.probe("/v1/models")).seconds for _ in range(NUM_ROUNDS - 1)]]
    yield Finding("ok", "gateway", f"{gateway.address} answers, round trip with connection {min(times) * 1e3:.1f} ms")
    yield clock(probe.date, time.time())
    has_key = bool(os.environ.get(KEY_VARIABLE))
    if probe.status == 401:
        text = f"the API key in {KEY_VARIABLE} is not valid" if has_key else f"no API key is set in {KEY_VARIABLE}"
        yield Finding("wrong", "API key", text, "set a valid one: an operator makes it with new_key")
        return
    if (await gateway.probe("/v1/models", key="")).status == 401:
        yield Finding("ok", "API key", "it is valid")
    else:
        yield Finding("note", "API key", "none is needed: whoever reaches the gateway may ask")
    fleet = await _fleet(gateway)
    if isinstance(fleet, Finding):
        yield fleet
    else:
        for finding in live(fleet):
            yield finding
    for finding in await access.look(gateway, None if isinstance(fleet, Finding) else fleet, draft):
        yield finding
    if isinstance(fleet, Finding) or fleet.verifiers:
        for finding in await lossless(gateway):
            yield finding


async def _fleet(gateway: GatewayClient) -> FleetStatus | Finding:
    try:
        return await gateway.fleet()
    except Unreachable:
        raise
    except ClientError as error:
        return Finding("note", "fleet", f"not shown: {error}", "let the operator expose /dsd/fleet to see more here")


def clock(told: float | None, now: float) -> Finding:
    """This machine's clock against the gateway's."""
    if told is None:
        return Finding("note", "clock", "the gateway does not tell its time")
    skew = now - (told + 0.5)  # the header has whole seconds
    if abs(skew) <= MAX_SKEW_S:
        return Finding("ok", "clock", "this machine and the gateway agree")
    text = f"this machine is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the gateway"
    return Finding("wrong", "clock", text, "set both by NTP: certificates may be refused, and traces are askew")


def live(fleet: FleetStatus) -> list[Finding]:
    """Verifiers and drafters."""
    model, found = fleet.gateway.model, list[Finding]()
    serving = [each for each in fleet.verifiers if model in each.models and not each.draining]
    if serving:
        names = ", ".join(each.name for each in serving)
        found.append(Finding("ok", "verifiers", f"{len(serving)} serve {model}: {names}"))
    else:
        found.append(Finding("wrong", "verifiers", f"none serves {model}", "start one, or look at its log and rights"))
    if not fleet.drafters:
        found.append(Finding("note", "drafters", "none is live: answers are right, and not sped up", "start one"))
    for each in fleet.drafters:
        if model not in each.models:
            text = f"{each.name} drafts for {', '.join(each.models)}, not for {model}"
            found.append(Finding("wrong", "drafters", text, "set its DSD_MODEL_NAME, or DSD_MODEL_NAME of the gateway"))
        elif each.acceptance is not None and each.acceptance < MIN_ACCEPTANCE:
            text = f"of the guesses of {each.name} {each.acceptance:.0%} are right"
            found.append(
                Finding("wrong", "drafters", text, "its draft is of another model, or not trained: replace it")
            )
        else:
            found.append(Finding("ok", "drafters", f"{each.name} drafts for {model}"))
    return found


async def lossless(gateway: GatewayClient) -> list[Finding]:
    """The same prompt, greedily, with and without speculation."""
    try:
        alone, sped = [await _answer(gateway, mode) for mode in ("off", "adaptive")]
    except Unreachable:
        raise
    except ClientError as error:
        return [Finding("wrong", "answers", str(error), "look at the verifiers' logs")]
    reports = alone.report, sped.report
    if alone.text != sped.text:
        names = {report.verifier for report in reports if report} - {None}
        text = f"speculation changes the text: {alone.text!r} becomes {sped.text!r}"
        if len(names) > 1:
            return [
                Finding(
                    "note", "lossless", text, f"compare the fingerprints of {' and '.join(sorted(map(str, names)))}"
                )
            ]
        return [Finding("wrong", "lossless", text, "on a GPU near-ties may swap (docs/sampling.md); else report it")]
    if (report := sped.report) is None or report.drafter is None:
        text = "not looked at: no drafter took part"
        return [Finding("note", "lossless", text, "see the drafters above, and `drafters` of the API key")]
    found = [Finding("ok", "lossless", f"{len(alone.text)} characters are the same with and without speculation")]
    times = [f"{answer.tpot_ms:.1f} ms" if answer.tpot_ms else "?" for answer in (alone, sped)]
    share = "" if report.acceptance is None else f", {report.acceptance:.0%} of its guesses right"
    return [*found, Finding("ok", "speculation", f"{report.drafter}: {times[1]} a token, {times[0]} without{share}")]


async def _answer(gateway: GatewayClient, mode: str) -> StreamedAnswer:
    options = AnswerOptions(NUM_TOKENS, temperature=0.0, seed=0, speculation=DsdOptions(mode))
    return await ask(gateway, None, conversation(PROMPT, None), options)
