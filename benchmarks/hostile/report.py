"""A hostile run as Markdown."""

from __future__ import annotations

from collections import Counter

from benchmarks.harness.markdown import markdown_table
from benchmarks.hostile.records import HostileResult, HttpFigures, RoleFigures
from benchmarks.hostile.run import GROWTH_MIB, MAX_SLOWDOWN
from benchmarks.hostile.sockets import BUSY_S, LINGER_S
from benchmarks.hostile.system import TIMEOUT_S

MAX_SHOWN = 20  # violations
MAX_CHARACTERS = 300  # of each


def as_markdown(result: HostileResult) -> str:
    parts = [_head(result)]
    if result.http is not None:
        parts += _of_http(result.http)
    if result.roles:
        parts.append(_of_roles(result.roles))
    if result.growth:
        parts.append(_growth(result.growth))
    parts.append(_violations(result.violations))
    return "\n\n".join(parts)


def _head(result: HostileResult) -> str:
    origin = result.origin
    commit = f"commit {origin.commit}, " if origin.commit else ""
    return f"`{origin.command}`, {origin.date}, {commit}{origin.machine}, Python {origin.python}. Seed {result.seed}."


def _of_http(http: HttpFigures) -> list[str]:
    num = sum(http.requests.values())
    bodies = (
        f"{num:,} bodies, after {http.num_warm_up:,} for warming up: {http.num_systematic:,} with one fault, "
        f"{num - http.num_systematic:,} with random changes."
    )
    allowed_s = TIMEOUT_S + BUSY_S
    silence = "longest silence of the gateway on a connection", f"{http.longest_silence_s:.1f} s"
    rows: list[tuple[object, ...]] = [
        ("honest answers beside them whose text is the same", http.num_equal, "all"),
        (*silence, f"{allowed_s:g} s, of half a body {allowed_s + LINGER_S:g} s"),
    ]
    if (slow := http.slowdown) is not None:
        beside = f"TPOT of honest clients beside {slow.rate:.0f} hostile requests a second, to that without"
        how = f"({slow.quiet_ms:.1f} ms), {slow.num_rounds} rounds"
        rows.append((f"{beside} {how}", slow.ratio, MAX_SLOWDOWN))
    return [
        bodies,
        _counts("answer to a body", http.requests),
        _counts("answers to a connection, and its end", http.connections),
        markdown_table(("what", "figure", "limit"), rows),
    ]


def _counts(kind: str, counts: dict[str, int]) -> str:
    return markdown_table((kind, "number"), ((name, f"{number:,}") for name, number in sorted(counts.items())))


def _of_roles(roles: list[RoleFigures]) -> str:
    names = ("role of the key", "packets", "types", "denied", "sessions", "honest texts equal", "left out", "disturbed")
    return markdown_table(names, map(_row, roles))


def _row(role: RoleFigures) -> tuple[object, ...]:
    counts = role.num_sessions, role.num_equal, role.num_left_out, len(role.disturbed)
    return role.role, f"{role.num_packets:,}", len(role.types), role.denied, *counts


def _growth(growth: dict[str, dict[str, float]]) -> str:
    names = sorted({name for each in growth.values() for name in each})
    rows = [(attack, *(f"{each.get(name, 0.0):.1f}" for name in names)) for attack, each in growth.items()]
    return f"Growth of memory in MiB, at most {GROWTH_MIB:g}:\n\n{markdown_table(('attack', *names), rows)}"


def _violations(violations: list[str]) -> str:
    if not violations:
        return "No violation."
    kinds = Counter(each.partition("\n")[0][:80] for each in violations)
    counted = [f"* {number} × {kind}" for kind, number in kinds.most_common()]
    shown = [f"* {each[:MAX_CHARACTERS]!r}" for each in violations[:MAX_SHOWN]]
    return "\n".join([f"{len(violations)} violations:\n", *counted, "\nThe first ones:\n", *shown])
