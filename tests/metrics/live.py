"""A system of real processes with stand-in models, clients that load it, and a Prometheus that scrapes it.

Invariant: nothing restarts what a test kills. Stand-ins replay made-up texts in the time of a profile: the services and
their metrics are the real ones, the tokens are not. Time runs SPEED times faster for Prometheus and for leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from benchmarks.experiments.service_overhead import write_standin
from benchmarks.harness.cell_plan import CellPlan, StandinPlan, kind_of
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected, measure_request
from benchmarks.harness.standin import MODEL_NAME
from client.wire import AnswerOptions, DsdOptions
from model_zoo.prompt_file import read_prompts
from services.gateway.text.tokenizer import load_tokenizer
from services.local import nats_server
from services.local.supervisor import Program
from shared.data.profiles import PassTimes, Profile, StepTimes
from tests.metrics.reading import ALERTS, ROOT, SPEED, faster

TIMES = Profile(name="slow", origin="made up", verifier=PassTimes(base_ms=40.0), drafter=StepTimes(step_ms=10.0))
NUM_TOKENS = 128
LEASE_S, SCRAPE_S, HEARTBEAT_S = 30 / SPEED, 15 / SPEED, 0.2
READY_S, LOOK_S = 300.0, 0.1
MONITOR = ROOT / "k8s" / "components" / "service-monitor" / "service-monitor.yaml"
OF_OPERATOR = "namespace: dsd, service: dsd, endpoint: http"  # labels that the Prometheus operator gives each target
SCRAPED_TWICE = "sum_over_time(up[1m]) >= 2"  # so that the first event after it is an increase
SETTINGS: dict[str, dict[str, str]] = {  # by kind of process; all verifiers together take 6 sessions
    "gateway": {"DSD_MAX_SESSIONS": "8", "DSD_MAX_QUEUE": "2"},
    "verifier-0": {"DSD_MAX_SESSIONS": "3", "DSD_LEASE_S": str(LEASE_S)},
}


@dataclass(slots=True)
class LiveSystem:
    """Its processes and their HTTP ports, by name. spare: programs that do not run yet, whose ports are chosen.
    answers: those that clients got or were refused, by status."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    spare: dict[str, Program] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    model: str = MODEL_NAME
    num_tokens: int = NUM_TOKENS

    def start(self, program: Program, port: int | None = None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder / f"{program.name}.log").open("wb")
        if port is not None:
            self.ports[program.name] = port
            program = replace(program, env=program.env | {"DSD_HTTP_PORT": str(port)})
        self.processes[program.name] = subprocess.Popen(
            program.argv, env=program.whole_env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        log.close()

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            process.kill()
            process.wait()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    @asynccontextmanager
    async def load(self, num_clients: int, speculation: DsdOptions | None = None) -> AsyncIterator[None]:
        """Clients that ask again and again during the block, each at once after its answer."""
        prompts = read_prompts(DEFAULT_PROMPTS)[:16]
        options = AnswerOptions(self.num_tokens, temperature=0.0, speculation=speculation or DsdOptions("adaptive"))
        template = RequestTemplate(self.model, options, ignore_eos=True)

        async def client(first: int) -> None:
            for number in itertools.count(first):
                prompt, now = prompts[number % len(prompts)], time.monotonic()
                sample = await measure_request(gateway, template, ScheduledRequest(number, prompt, now, now))
                self.answers[sample.status] += 1
                if not sample.num_tokens:  # refused: as a client does that tries again
                    await asyncio.sleep(LOOK_S)

        async with connected(self.url("gateway")) as gateway, asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(client(number)) for number in range(num_clients)]
            try:
                yield
            finally:
                for task in running:
                    task.cancel()


@dataclass(frozen=True, slots=True)
class Prometheus:
    """Its HTTP API."""

    url: str
    http: aiohttp.ClientSession

    async def query(self, expr: str) -> list[float]:
        """The newest value of each series."""
        return [value for _, value in await self.labelled(expr)]

    async def labelled(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """The labels and the newest value of each series."""
        return [(series["metric"], float(series["value"][1])) for series in await self.series(expr)]

    async def series(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """What the API tells of an expression, now or at a time in seconds."""
        asked = {"query": expr} if at is None else {"query": expr, "time": f"{at:.3f}"}
        found: list[dict[str, Any]] = (await self._get("query", asked))["result"]
        return found

    async def over(self, expr: str, start: float, end: float, step_s: float) -> list[dict[str, Any]]:
        """The values of each series from `start` to `end`, in seconds of time.time()."""
        asked = {"query": expr, "start": str(start), "end": str(end), "step": str(step_s)}
        series: list[dict[str, Any]] = (await self._get("query_range", asked))["result"]
        return series

    async def firing(self) -> dict[str, set[str]]:
        """Whom the alerts that fire name."""
        found: dict[str, set[str]] = {}
        for each in (await self._get("alerts", {}))["alerts"]:
            if each["state"] == "firing":
                labels = each["labels"]
                found.setdefault(labels["alertname"], set()).add(labels.get("peer") or labels.get("instance", ""))
        return found

    async def _get(self, what: str, params: Mapping[str, str]) -> dict[str, Any]:
        async with self.http.get(f"{self.url}/api/v1/{what}", params=params) as response:
            answer = await response.json()
            assert answer["status"] == "success", (answer, params)
            data: dict[str, Any] = answer["data"]
            return data


@asynccontextmanager
async def live_system(
    plan: CellPlan,
    folder: Path,
    settings: Mapping[str, Mapping[str, str]] = SETTINGS,
    spare: Collection[str] = (),
    far: Collection[str] = (),
) -> AsyncIterator[LiveSystem]:
    """Starts what a plan names, but the programs in `spare`, and waits until all of it is ready. settings: by kind or
    name of a process. far: names of those that reach NATS over the plan's link."""
    system = LiveSystem(folder)
    try:
        nats = nats_server.write_open(folder / "nats", nats_server.free_port()).url
        system.start(nats_server.program(folder / "nats"))
        relay_port = nats_server.free_port()
        if far:
            system.start(plan.relay(nats, relay_port))
            await until_listens(relay_port)
        for program in plan.programs(nats, nats, port := nats_server.free_port()):
            own, name = port if program.name == "gateway" else nats_server.free_port(), program.name
            env = {**program.env, **settings.get(kind_of(name), {}), **settings.get(name, {})}
            if name in far:
                env["DSD_NATS_URL"] = f"nats://127.0.0.1:{relay_port}"
            chosen = replace(program, env=env | {"DSD_HEARTBEAT_S": str(HEARTBEAT_S)})
            if name in spare:
                system.ports[name], system.spare[name] = own, chosen
            else:
                system.start(chosen, own)
        async with aiohttp.ClientSession() as http:
            for name in system.ports.keys() - system.spare.keys():
                await until_answers(http, f"{system.url(name)}/readyz")
        yield system
    finally:
        system.stop()


async def until_listens(port: int) -> None:
    """Returns when something takes connections at a port of this machine."""
    async with asyncio.timeout(READY_S):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(LOOK_S)


def standin_plan(models: Path, folder: Path, num_verifiers: int = 2) -> CellPlan:
    """Two drafters and some verifiers that replay."""
    folder.mkdir(parents=True, exist_ok=True)
    standin: StandinPlan = write_standin(
        load_tokenizer(models / "target"), read_prompts(DEFAULT_PROMPTS)[:16], folder, seed=3
    )
    standin.profile.write_text(TIMES.model_dump_json(), encoding="utf-8")
    return CellPlan(models, is_pinned=False, standin=standin, drafts=("int8", "int4"), num_verifiers=num_verifiers)


@asynccontextmanager
async def prometheus(system: LiveSystem, folder: Path, scrape_s: float = SCRAPE_S) -> AsyncIterator[Prometheus]:
    """Scrapes every service; rules are SPEED times faster than committed. The instance is the name of the process."""
    _write_configuration(system, folder, scrape_s)
    url = f"127.0.0.1:{nats_server.free_port()}"
    with serving(folder, url):
        async with aiohttp.ClientSession() as http:
            await until_answers(http, f"http://{url}/-/ready")
            scraping = Prometheus(f"http://{url}", http)
            async with asyncio.timeout(READY_S):
                running = system.ports.keys() - system.spare.keys()
                while len(await scraping.query(SCRAPED_TWICE)) < len(running):  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S)
            yield scraping


def _write_configuration(system: LiveSystem, folder: Path, scrape_s: float) -> None:
    every, monitor = f"{scrape_s * 1e3:.0f}ms", yaml.safe_load(MONITOR.read_text(encoding="utf-8"))
    (endpoint,) = monitor["spec"]["endpoints"]
    targets = "\n".join(
        f'      - {{targets: ["127.0.0.1:{port}"], labels: {{instance: {name}, {OF_OPERATOR}}}}}'
        for name, port in system.ports.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alerts.yaml").write_text(faster(ALERTS.read_text(encoding="utf-8")), encoding="utf-8")
    (folder / "prometheus.yaml").write_text(
        f"""\
global: {{scrape_interval: {every}, scrape_timeout: {every}, evaluation_interval: {every}}}
rule_files: [alerts.yaml]
scrape_configs:
  - job_name: dsd
    honor_labels: {str(endpoint["honorLabels"]).lower()}
    static_configs:
{targets}
""",
        encoding="utf-8",
    )


@contextmanager
def serving(folder: Path, address: str, *flags: str) -> Iterator[None]:
    """A Prometheus with the configuration and the data of a folder."""
    command = ("prometheus", "--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--log.level=warn", *flags)
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            (*command, f"--web.listen-address={address}"), cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


async def until_answers(http: aiohttp.ClientSession, url: str) -> None:
    """Returns when an address answers 200. Raises TimeoutError."""
    async with asyncio.timeout(READY_S):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(LOOK_S)
