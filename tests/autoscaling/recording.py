"""What a real system's metrics were while load came and went, and a Prometheus that has them.

Invariant: values are those that a Prometheus scraped. Times are seconds from the start, as many times longer as the
system ran faster than manifests say.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import aiohttp
import msgspec

from services.local import nats_server
from tests.metrics.live import Prometheus, serving, until_answers

FOLDER = Path(__file__).parent / "recorded"
START_S = 1_700_000_000  # of all recordings, where Prometheus reads them
STALE_S = 30  # without a sample for two scrapes, an instance is gone
Values: TypeAlias = list[float | None]


class Scraped(msgspec.Struct, frozen=True):
    """The samples of one instance. series: by name and labels, a value for each time; None where there is none."""

    times_s: list[float]
    series: dict[str, Values]


class Decision(msgspec.Struct, frozen=True, array_like=True):
    """What the autoscaler saw and set."""

    at_s: float
    value: float | None
    replicas: int


class Recording(msgspec.Struct, frozen=True):
    """source: command, machine, date. load: when how many clients began to ask. answers: to the clients, by status."""

    source: str
    scrape_s: float
    load: list[tuple[float, int]]
    instances: dict[str, Scraped]
    decisions: list[Decision]
    answers: dict[str, int]

    @property
    def end_s(self) -> float:
        return max(scraped.times_s[-1] for scraped in self.instances.values())


def read(name: str) -> Recording:
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=Recording)


def write(name: str, recording: Recording) -> None:
    """One line for each series."""
    FOLDER.mkdir(exist_ok=True)
    text = msgspec.json.encode(recording).decode()
    for mark in ('"source"', '"scrape_s"', '"load"', '"instances"', '"times_s"', '"decisions"', '"answers"', '"dsd_'):
        text = text.replace(mark, f"\n{mark}")
    (FOLDER / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def open_metrics(recording: Recording) -> str:
    """In the format that promtool makes blocks of."""
    families: dict[str, list[str]] = {}
    for name, labels, instance, samples in _series(recording):
        told = ",".join(part for part in (labels, f'namespace="dsd",instance="{instance}"') if part)
        lines = families.setdefault(name, [])
        lines.extend(f"{name}{{{told}}} {value} {START_S + at:.3f}" for at, value in samples)
    return "\n".join(line for lines in families.values() for line in lines) + "\n# EOF\n"


def _series(recording: Recording) -> Iterator[tuple[str, str, str, list[tuple[float, float]]]]:
    for instance, scraped in recording.instances.items():
        for key, values in scraped.series.items():
            name, _, labels = key.partition("{")
            samples = [(at, v) for at, v in zip(scraped.times_s, values, strict=True) if v is not None]
            yield name, labels.removesuffix("}"), instance, samples


def _make_blocks(recording: Recording, folder: Path) -> None:
    (folder / "recorded.om").write_text(open_metrics(recording), encoding="utf-8")
    (folder / "prometheus.yaml").write_text("{}\n", encoding="utf-8")
    make = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "recorded.om", "data"]
    subprocess.run(make, cwd=folder, check=True, capture_output=True)


@asynccontextmanager
async def replayed(recording: Recording, folder: Path) -> AsyncIterator[Prometheus]:
    """A Prometheus with a recording's samples; its time begins at START_S."""
    _make_blocks(recording, folder)
    url = f"127.0.0.1:{nats_server.free_port()}"
    with serving(folder, url, f"--query.lookback-delta={STALE_S}s", "--storage.tsdb.retention.time=100y"):
        async with aiohttp.ClientSession() as http:
            await until_answers(http, f"http://{url}/-/ready")
            yield Prometheus(f"http://{url}", http)
