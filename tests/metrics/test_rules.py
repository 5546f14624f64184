"""promtool's unit tests: each alert fires on its event within the time that docs/runbooks.md states, not before."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.metrics.reading import ALERTS, alerts

CALM_MIN = 20  # before the event


@dataclass(frozen=True, slots=True)
class Case:
    """Series of a metric: `before` and `after` the event, a value or a step each minute. other: further series."""

    series: str
    before: str
    after: str
    other: tuple[tuple[str, str], ...] = ()


def gone(service: str) -> Case:
    lost = (f'dsd_gateway_lost_peers_total{{service="{service}"}}', "0x20 1x60")
    return Case(f'dsd_gateway_peers{{service="{service}"}}', "2", "1", (lost,))


def event(series: str, num: int = 1) -> Case:
    """A counter that rises by so many."""
    return Case(series, "0", str(num))


def late(fate: str) -> str:
    return f'dsd_verifier_guesses_total{{fate="{fate}"}}'


TTFT = "dsd_gateway_time_to_first_token_seconds_bucket"
CASES = {
    "DsdNoGateway": Case("dsd_gateway_sessions", "3", "stale"),
    "DsdNoVerifier": Case('dsd_gateway_peers{service="verifier"}', "1", "0"),
    "DsdVerifierLost": gone("verifier"),
    "DsdDrafterLost": gone("drafter"),
    "DsdControllerLost": gone("controller"),
    "DsdCrashLoop": event('dsd_gateway_lost_peers_total{service="drafter"}', 3),
    "DsdNotReady": Case("dsd_ready", "1", "0"),
    "DsdVerifierSaturated": Case("dsd_verifier_utilization_ratio", "0.9", "1"),
    "DsdFleetSaturated": Case(
        "dsd_gateway_num_requests_waiting",
        "0",
        "3",
        (("dsd_gateway_sessions", "8x80"), ("dsd_verifier_capacity_sessions", "10x80")),
    ),
    "DsdQueueFull": event('dsd_gateway_admission_rejections_total{reason="queue_full"}'),
    "DsdFailedAnswers": Case(
        'dsd_gateway_failed_sessions_total{code="internal"}',
        "0",
        "0+6x60",
        (("dsd_gateway_e2e_request_latency_seconds_count", "0+60x80"),),
    ),
    "DsdLeaseExpired": event("dsd_verifier_expired_sessions_total"),
    "DsdFailedPasses": event("dsd_verifier_failed_passes_total"),
    "DsdVerifiersDiffer": event("dsd_gateway_conflicts_total"),
    "DsdSlowFirstToken": Case(
        f'{TTFT}{{le="10.0"}}',
        "0",
        "0+60x60",
        ((f'{TTFT}{{le="5.0"}}', "0x80"), (f'{TTFT}{{le="+Inf"}}', "0x20 0+60x60")),
    ),
    "DsdGuessesLate": Case(late("accepted"), "0+60", "0x60", ((late("late"), "0+60x80"),)),
    "DsdEventLoopBusy": Case("dsd_event_loop_lag_seconds", "0.01", "0.3"),
    "DsdNatsReconnects": event("dsd_bus_reconnects_total", 2),
    "DsdMessagesLost": event('dsd_bus_dropped_messages_total{reason="malformed"}'),
    "DsdNatsDenied": event('dsd_bus_errors_total{kind="permission violation"}'),
}
STEPS_PER_MIN = 4  # a sample each 15 s


def values(case: Case) -> str:
    """The notation of promtool: the calm, then the event, which stays."""
    before = case.before if "+" in case.before else f"{case.before}+0"
    calm = f"{before}x{CALM_MIN * STEPS_PER_MIN - 1}"
    rest = 60 * STEPS_PER_MIN
    if case.after == "stale":
        return f"{calm} stale"
    if "x" in case.after:
        start, _, _ = case.after.partition("x")
        return f"{calm} {start if '+' in start else start + '+0'}x{rest}"
    return f"{calm} {case.after}+0x{rest}"


def stretched(notation: str) -> str:
    """Minutes of the short notation as samples."""
    parts = []
    for part in notation.split():
        start, _, num = part.partition("x")
        parts.append(f"{start if '+' in start else start + '+0'}x{int(num) * STEPS_PER_MIN - 1}")
    return " ".join(parts)


def unit_test(name: str, case: Case, within_s: float) -> dict:
    inputs = [{"series": case.series, "values": values(case)}]
    inputs += [{"series": series, "values": stretched(notation)} for series, notation in case.other]
    fires = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
    return {
        "name": name,
        "interval": "15s",
        "input_series": inputs,
        "promql_expr_test": [
            {"expr": fires, "eval_time": f"{CALM_MIN * 60 - 15}s", "exp_samples": []},
            {
                "expr": fires,
                "eval_time": f"{CALM_MIN * 60 + int(within_s)}s",
                "exp_samples": [{"labels": "{}", "value": 1}],
            },
        ],
    }


def test_every_alert_has_a_case() -> None:
    assert set(CASES) == {alert.name for alert in alerts()}


def test_the_rules_are_sound(promtool: str) -> None:
    subprocess.run([promtool, "check", "rules", "--lint-fatal", str(ALERTS)], check=True)


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_within_its_stated_time_and_not_before_its_event(
    promtool: str, tmp_path: Path, name: str
) -> None:
    (alert,) = [each for each in alerts() if each.name == name]
    file = tmp_path / "test.yaml"
    tests = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "15s",
        "tests": [unit_test(name, CASES[name], alert.within_s)],
    }
    file.write_text(yaml.safe_dump(tests), encoding="utf-8")
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
