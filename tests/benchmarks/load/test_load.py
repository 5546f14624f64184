"""The load generator's command: output, exit status, JSON file and refused options."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.load import __main__ as load
from tests.benchmarks.fake_gateway import serving

WAIT_S = 30.0
ROOT = Path(__file__).parents[3]


def test_a_run_against_a_gateway_succeeds_and_reports_goodput() -> None:
    async def generate() -> tuple[str, list[str]]:
        async with serving() as fake:
            argv = [sys.executable, "-m", "benchmarks.load", "--url", fake.url, "--requests", "5", "--clients", "2"]
            objective = ["--ttft-ms", "60000", "--tpot-ms", "60000", "--window", "4"]
            run = await asyncio.create_subprocess_exec(*argv, *objective, stdout=PIPE, cwd=ROOT)
            async with asyncio.timeout(WAIT_S):
                output, _ = await run.communicate()
            assert run.returncode == 0
            return output.decode(), [body["dsd"]["speculation"] for body in fake.bodies]

    output, modes = asyncio.run(generate())
    assert "model fake" in output
    assert "5 ok" in output
    assert "100% of requests" in output
    assert "20 accepted, 5 late, 10 rejected, 25 discarded; acceptance 0.714" in output
    assert modes == ["static"] * 5


def test_a_run_without_a_gateway_fails_and_writes_its_samples(tmp_path: Path) -> None:
    """Every failed request is counted, and the exit status is 1."""
    path = tmp_path / "out.json"
    command = ["--url", "http://127.0.0.1:1", "--model", "m", "--requests", "3", "--rate", "1000"]
    result = CliRunner().invoke(load.app, [*command, "--output", str(path)])
    assert result.exit_code == 1, result.output
    assert "3 unreachable" in result.output
    content = json.loads(path.read_text())
    assert content["summary"]["statuses"] == {"unreachable": 3}
    assert len(content["samples"]) == 3
    assert content["origin"]["machine"]


@pytest.mark.parametrize("closed", [("--clients", "1"), ("--think-s", "0")], ids=lambda flags: flags[0])
@pytest.mark.parametrize("opened", [("--rate", "9"), ("--trace", "no-file")], ids=lambda flags: flags[0])
def test_flags_of_a_closed_loop_are_refused_in_an_open_one(opened: tuple[str, str], closed: tuple[str, str]) -> None:
    result = CliRunner().invoke(load.app, ["--url", "http://127.0.0.1:1", "--model", "m", *opened, *closed])
    assert result.exit_code == 2
    assert "for a closed loop" in result.output
