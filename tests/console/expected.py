"""What the console's cells should show, from the answers of the gateway's API alone.

Invariant: it follows docs/console.md and docs/api.md, not the page's code: a wrong formula there fails a test here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, TypeAlias

from tests.console.browser import Row, figure

Told: TypeAlias = dict[str, Any]
Cells: TypeAlias = dict[str, float | str | None]  # by column; a figure, a text, or nothing to tell


def check(shown: Sequence[Row], expected: Sequence[Cells]) -> None:
    """The rows of a table have these cells, maybe others beside them; figures are those after rounding."""
    assert len(shown) == len(expected), (shown, expected)
    for row, cells in zip(shown, expected, strict=True):
        for column, value in cells.items():
            if isinstance(value, str):
                assert row[column] == value, (column, row)
                continue
            found = figure(row[column].removesuffix(": paused"))
            assert (found is None) == (value is None), (column, value, row)
            assert found is None or value is None or found.is_about(value), (column, value, row)


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def acceptance(told: Told) -> float | None:
    """Right guesses / compared guesses."""
    right = told["accepted"] + told["late"]
    return share(right, right + told["rejected"])


# --- fleet ------------------------------------------------------------------------------------------------------------


def drafters(fleet: Told) -> list[Cells]:
    return [
        {
            **peer(each),
            "round trip": each["rtt_ms"] or None,
            "draft step": each["step_ms"],
            "guesses/s": each["guesses_per_s"],
            "acceptance": each["acceptance"],
            "in time": each["in_time"],
            "provider": each["provider"],
        }
        for each in fleet["drafters"]
    ]


def verifiers(fleet: Told) -> list[Cells]:
    return [
        {
            **peer(each),
            "batch": each["batch"],
            "queued tokens": each["queue_tokens"],
            "pass": each["step_ms"],
            "free KV cache": share(each["free_kv_tokens"], each["kv_tokens"]),
        }
        for each in fleet["verifiers"]
    ]


def peer(each: Told) -> Cells:
    return {
        "name": each["name"],
        "state": "draining" if each["draining"] else "live",
        "sessions": f"{each['num_sessions']} / {each['max_sessions']}",
        "last heard": each["heartbeat_age_ms"],
    }


def pairs(looks: Sequence[Told]) -> list[Cells]:
    """looks: all answers that the page got, in less than a minute."""
    return [
        {
            "drafter": pair["drafter_id"].split(".")[0],
            "verifier": pair["verifier_id"].split(".")[0],
            "window": pair["window"],
            "chunk": pair["chunk"],
            "round trip": reason.get("rtt_ms"),
            "acceptance": reason.get("acceptance"),
            "pass": reason.get("pass_ms"),
            "TPOT": reason.get("tpot_ms"),
            "gain (1 min)": gain(looks, pair),
            "draft step": reason.get("draft_ms"),
            "policy": pair["policy"],
            "decided": pair["age_ms"],
        }
        for pair in looks[-1]["windows"]
        for reason in [pair["reason"] or {}]
    ]


def gain(looks: Sequence[Told], of: Told) -> float | None:
    """The mean of time of a pass / TPOT over the decisions on a pair."""
    ids = of["drafter_id"], of["verifier_id"]
    found = [each for look in looks for each in look["windows"] if (each["drafter_id"], each["verifier_id"]) == ids]
    reasons = [each["reason"] for each in found if each["reason"] and each["reason"]["tpot_ms"]]
    told = [reason["pass_ms"] / reason["tpot_ms"] for reason in reasons[:1]]
    told += [
        now["pass_ms"] / now["tpot_ms"] for before, now in pairwise(reasons) if now["tpot_ms"] != before["tpot_ms"]
    ]
    return fmean(told) if told else None


# --- chat -------------------------------------------------------------------------------------------------------------


def report(stream: str) -> Told:
    """What the end of a streamed answer tells: the `dsd` object, with the metrics and the usage."""
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    told: Told = {}
    for event in events:
        dsd = event.get("dsd") or {}
        told |= {} if "pieces" in dsd else dsd
        told |= {**(event.get("metrics") or {}), **(event.get("usage") or {})}
    return told


def comparison(first: Told, second: Told) -> list[Cells]:
    """Of an adaptive answer with one of the target alone, row by row."""
    return [
        cells(
            "tokens per second",
            "tokens_per_second",
            first,
            second,
            first["tokens_per_second"] / second["tokens_per_second"],
        ),
        cells("TPOT", "tpot_ms", first, second, second["tpot_ms"] / first["tpot_ms"]),
        cells("TTFT", "ttft_ms", first, second, second["ttft_ms"] / first["ttft_ms"]),
        cells("tokens", "completion_tokens", first, second, ""),
        cells("tokens per verdict", "tokens_per_verdict", first, second, ""),
        {"figure": "acceptance", "adaptive window": acceptance(first), "target only": acceptance(second), "gain": ""},
        {"figure": "guesses", "adaptive window": fates(first), "target only": "–", "gain": ""},
        cells("looked up", "looked_up", first, second, ""),
        cells("window", "window", first, second, ""),
        {
            "figure": "served by",
            "adaptive window": f"{first['verifier']}, {first['drafter']}",
            "target only": second["verifier"],
        },
    ]


def cells(name: str, key: str, first: Told, second: Told, gain: float | str) -> Cells:
    return {"figure": name, "adaptive window": first[key], "target only": second[key], "gain": gain}


def fates(told: Told) -> str:
    names = ("accepted", "late", "rejected", "discarded")
    return ", ".join(f"{told[name]:,} {name}" for name in names if told[name])


# --- requests ---------------------------------------------------------------------------------------------------------


def requests(told: Sequence[Told]) -> list[Cells]:
    return [
        {
            "link": f"#requests/{each['id']}",
            "speculation": each["speculation"],
            "outcome": each["outcome"],
            "prompt": each["num_prompt_tokens"],
            "tokens": each["num_tokens"],
            "total": each["total_ms"],
            "TTFT": each["ttft_ms"],
            "TPOT": each["tpot_ms"],
            "acceptance": acceptance(each),
            "tokens/verdict": share(each["num_tokens"], each["num_verdicts"]),
            "verifier": each["verifier"],
            "drafter": each["drafter"],
        }
        for each in told
    ]


def phases(told: Told) -> dict[str, float]:
    """The parts of a request's time in milliseconds."""
    opened = next(step["at_ms"] for step in told["steps"] if step["kind"] == "opened")
    last = max(each["at_ms"] for each in told["verdicts"] if each["num_tokens"])
    bounds = [0.0, told["started_ms"], min(opened, told["ttft_ms"]), told["ttft_ms"], last, told["total_ms"]]
    names = ("before", "opening", "prefill", "decode", "end")
    return {name: until - since for name, (since, until) in zip(names, pairwise(bounds), strict=True)}


def decoding(told: Told) -> list[float]:
    """The figures of the sentence on decoding: passes, tokens of a pass, share of the time that they compute, sessions
    in a pass, guesses accepted, guesses late."""
    passes = [each for each in told["verdicts"] if each["num_tokens"]]
    computing = sum(each["pass_ms"] for each in passes[1:]) / phases(told)["decode"]
    mean = told["num_tokens"] / len(passes), min(1.0, computing), fmean(each["batch"] for each in passes)
    return [len(passes), mean[0], 100 * mean[1], mean[2], told["accepted"], told["late"]]


def verdicts(told: Told) -> list[Cells]:
    return [
        {
            "at": each["at_ms"],
            "tokens": each["num_tokens"],
            "accepted": each["num_accepted"],
            "looked up": each["num_looked_up"],
            "others are": each["own"] if each["num_tokens"] > each["num_accepted"] + each["num_looked_up"] else "–",
            "rejected": each["rejected"],
            "late": each["late"],
            "discarded": each["discarded"],
            "pass": each["pass_ms"],
            "fed tokens": each["pass_tokens"],
            "batch": each["batch"],
            "queue": each["queue"],
            "draft lay": each["held_ms"],
            "window": each["window"],
            "term": each["term"],
        }
        for each in told["verdicts"]
    ]


def squares(told: Told) -> Counter[str]:
    """Tokens by source and unused guesses by fate, as far as a column has room: 10 above the line, 8 below it."""
    found: Counter[str] = Counter()
    for each in told["verdicts"]:
        num = min(each["num_tokens"], 10)
        found["accepted"] += min(num, each["num_accepted"])
        found["lookup"] += min(max(0, num - each["num_accepted"]), each["num_looked_up"])
        found[each["own"]] += max(0, num - each["num_accepted"] - each["num_looked_up"])
        room = 8
        for fate in ("late", "rejected", "discarded"):
            drawn = min(each[fate], room)
            found[fate] += drawn
            room -= drawn
    return +found
