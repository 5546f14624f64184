"""A target over several ranks of torchrun serves the text that one process writes, and ends as one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
import yaml
from prometheus_client import CollectorRegistry
from transformers import LlamaConfig, LlamaForCausalLM

from services.cloud_verifier.torch_engine.architecture import UnsupportedModel, check_heads
from services.edge_drafter.model import DraftModel
from services.gateway.text.tokenizer import TargetTokenizer
from services.local import nats_server
from services.local.nats_server import Access
from services.local.supervisor import Supervisor
from shared.bus import nats_bus
from shared.bus.bus import Bus
from shared.protocol import subjects
from shared.protocol.messages import Opened, Verdict
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics
from tests.e2e.harness import Client, Generated, make_drafter
from tests.e2e.processes import IS_JOINED, IS_SECURE
from tests.e2e.yardstick import PlainModel
from tests.k8s.joined import joined
from tests.k8s.manifests import K8S, pod_of

NEAR_TIE = 1e-4
NUM_PROMPTS, NUM_TOKENS = 20, 64
READY_S, END_S, DRAIN_S = 120.0, 40.0, 30.0
NAMES = {"gateway": ["client"], "controller": [], "verifier": ["verifier"], "drafter": ["drafter"]}  # the client asks
TINY = LlamaConfig(
    vocab_size=211,  # odd, so that the ranks' parts of it differ
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=False,
)

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(TINY).save_pretrained(folder)
    return folder


@pytest.fixture
async def access(tmp_path: Path) -> AsyncIterator[Access]:
    """To a bus of the kind that the environment chooses, as in processes.py."""
    if IS_JOINED:
        with joined(tmp_path / "joined", NAMES) as (found, _):
            yield found
        return
    folder, port = tmp_path / "nats", nats_server.free_port()
    found = nats_server.write_secured(folder, port, NAMES) if IS_SECURE else nats_server.write_open(folder, port)
    supervisor = Supervisor(tmp_path / "logs", print)
    try:
        await supervisor.wait_ready(supervisor.start(nats_server.program(folder)), READY_S)
        yield found
    finally:
        await supervisor.stop()


class Ranks:
    """A verifier under torchrun."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def pid_of(self, rank: int) -> int:
        """Of a child of torchrun."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
            if parent == self.process.pid and f"RANK={rank}".encode() in variables:
                return int(folder.name)
        raise AssertionError(f"there is no rank {rank}")

    async def until_ready(self) -> None:
        async with asyncio.timeout(READY_S):
            while '"event": "ready"' not in self.log:  # what another process writes sets no event here
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.1)


@asynccontextmanager
async def ranks(target: Path, number: int, access: Access, folder: Path) -> AsyncIterator[Ranks]:
    command, variables = many_gpus(number)
    flags = ("--target", target, "--dtype", "float32", "--device", "cpu", "--http-port", "0")
    environment = os.environ | variables | variables_of(access, "verifier")
    environment |= {"OMP_NUM_THREADS": "1", "DSD_NUM_THREADS": "1", "DSD_LOG_FORMAT": "json", "DSD_LEASE_S": "300"}
    environment |= {"DSD_DRAFTER_LEASE_S": "300", "DSD_DRAIN_S": str(DRAIN_S)}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "ranks.log").open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *map(str, (*command, *flags)),
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            yield Ranks(process, folder / "ranks.log")
        finally:
            if process.returncode is None:  # ranks have sessions of their own, so torchrun has to end them
                process.terminate()
                await process.wait()


def many_gpus(number: int) -> tuple[list[str], dict[str, str]]:
    """The command and the variables of the component for several GPUs, with so many ranks."""
    component = yaml.safe_load((K8S / "components/many-gpus/kustomization.yaml").read_text())
    (patch,) = component["patches"]
    (container,) = pod_of(yaml.safe_load(patch["patch"]))["containers"]
    torchrun, *words = container["command"]
    assert (torchrun, words.pop(1)) == ("torchrun", "--nproc-per-node=4")
    variables = {each["name"]: each["value"] for each in container["env"]}
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={number}", *words], variables


def variables_of(access: Access, name: str) -> dict[str, str]:
    """With which a process of that name is let in."""
    return {"DSD_NAME": name, "DSD_NATS_URL": access.url} | access.settings.get(name, {})


@asynccontextmanager
async def bus_on(access: Access, name: str) -> AsyncIterator[Bus]:
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in variables_of(access, name).items():
            patch.setenv(variable, value)
        settings = ServiceSettings()
    bus = await nats_bus.connect(settings, subjects.new_instance_id(name), BusMetrics(CollectorRegistry()))
    try:
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def client_on(access: Access) -> AsyncIterator[Client]:
    async with bus_on(access, "client") as bus:
        client = Client(bus)
        await client.start()
        yield client


async def answers_of(client: Client, prompts: list[list[int]], num_tokens: int, **options: object) -> list[Generated]:
    """The verifier's, as many asked at once as a drafter has room for."""
    verifier_id, room = await client.hear_of("verifier"), asyncio.Semaphore(8)

    async def ask(prompt: list[int]) -> Generated:
        async with room:
            return await client.generate(prompt, verifier_id=verifier_id, max_tokens=num_tokens, **options)  # type: ignore[arg-type]

    return await asyncio.gather(*map(ask, prompts))


async def test_two_ranks_write_the_text_of_one_process(tiny_folder: Path, access: Access, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1, 211, (length,), generator=generator).tolist() for length in (5, 70, 130, 33)]
    prompts.append(prompts[2][:100])  # begins with what a cache holds already
    plain = PlainModel(tiny_folder)
    async with ranks(tiny_folder, 2, access, tmp_path) as found, client_on(access) as client:
        await found.until_ready()
        answers = [
            answer
            for part in (prompts[:4], prompts[4:])
            for answer in await answers_of(client, part, 24, cache_scope="shared", stop_ids=(210,))
        ]
    for prompt, answer in zip(prompts, answers, strict=True):
        departures = plain.departures(prompt, answer.token_ids, 24, [210])
        assert all(each.margin < NEAR_TIE for each in departures), departures


async def test_told_to_stop_the_ranks_finish_what_is_open_and_end(
    tiny_folder: Path, access: Access, tmp_path: Path
) -> None:
    """torchrun hands the signal to all ranks, and waits for them."""
    async with ranks(tiny_folder, 2, access, tmp_path) as found, client_on(access) as client:
        await found.until_ready()
        answering = asyncio.create_task(answers_of(client, [[1, 2, 3], [4, 5]], 400))
        await client.until_heard(Opened, 2)
        found.process.send_signal(signal.SIGTERM)
        answers = await answering
        async with asyncio.timeout(END_S):
            await found.process.wait()
    assert [len(answer.token_ids) for answer in answers] == [400, 400]
    assert '"event": "stopped"' in found.log
    assert '"event": "rank ends"' in found.log


async def test_a_rank_that_dies_takes_the_others_with_it(tiny_folder: Path, access: Access, tmp_path: Path) -> None:
    """While nothing is computed, too: torchrun would let rank 0 drain, and this session waits for guesses for ever."""
    async with ranks(tiny_folder, 2, access, tmp_path) as found, client_on(access) as client:
        await found.until_ready()
        verifier_id, drafter_id = await client.hear_of("verifier"), subjects.new_instance_id("nobody")
        asking = client.generate([1, 2, 3], verifier_id=verifier_id, drafter_id=drafter_id, free_run=False)
        answering = asyncio.create_task(asking)
        await client.until_heard(Verdict, 1)
        os.kill(found.pid_of(1), signal.SIGKILL)
        async with asyncio.timeout(DRAIN_S / 2):
            assert await found.process.wait() != 0
        answering.cancel()
    assert '"event": "another rank has ended, so this one ends"' in found.log


def test_heads_that_ranks_can_t_share_are_refused_by_name() -> None:
    check_heads(TINY, 2)
    with pytest.raises(UnsupportedModel, match="4 query and 2 key heads can't be shared by 3 ranks"):
        check_heads(TINY, 3)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_three_ranks_write_the_default_target_s_text_with_guesses_but_for_near_ties(
    default_models: Path,
    access: Access,
    tmp_path: Path,
    drafts: dict[str, DraftModel],
    prompts: list[list[int]],
    tokenizer: TargetTokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its 9 query and 3 key heads are shared by three."""
    asked, plain = prompts[:NUM_PROMPTS], PlainModel(default_models / "target")
    async with (
        ranks(default_models / "target", 3, access, tmp_path) as found,
        client_on(access) as client,
        bus_on(access, "drafter") as bus,
    ):
        await found.until_ready()
        drafter = make_drafter(bus, drafts["int8"], "drafter")
        running = asyncio.create_task(drafter.run())
        answers = await answers_of(
            client,
            asked,
            NUM_TOKENS,
            stop_ids=tokenizer.stop_ids,
            drafter_id=drafter.instance_id,
            free_run=False,  # waits for guesses, however busy the machine is
        )
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    departures = [
        (number, each.index, each.margin)
        for number, (prompt, answer) in enumerate(zip(asked, answers, strict=True))
        for each in plain.departures(prompt, answer.token_ids, NUM_TOKENS, tokenizer.stop_ids)
    ]
    with capsys.disabled():
        num_tokens = sum(len(answer.token_ids) for answer in answers)
        print(f"\n{num_tokens} tokens of {len(answers)} texts, {len(departures)} of them not generate's")
        for number, index, margin in departures:
            print(f"  prompt {number}, token {index} of the answer: generate's logit is {margin:.1e} above ours")
    assert all(margin < NEAR_TIE for _, _, margin in departures), departures
    assert sum(answer.tally.accepted for answer in answers) > NUM_PROMPTS
