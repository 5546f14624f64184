"""What services cost beside models and network: real ones around replayed stand-ins on this machine.

Invariant: the stand-ins' waits are known (TIMES) and not counted. An overrun of so short waits is no complaint: its
time counts as DSD's own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from awc.policy import WindowChoice
from benchmarks.harness import cell as cells
from benchmarks.harness.asking import Asking, Due, connected, measure
from benchmarks.harness.cell_plan import GATEWAY, CellPlan, Standin
from benchmarks.harness.conductor import Conductor, conducting
from benchmarks.harness.latency import OK, Sample
from benchmarks.harness.prompts import OWN
from benchmarks.policies.measure import NAMES
from benchmarks.policies.plan import SLIDING
from benchmarks.standins.paced import OVERRUN
from client.gateway import GatewayClient
from client.wire import AnswerOptions, DsdOptions
from model_zoo.prompt_file import read_prompts
from services.gateway.text.chat_template import ChatMessage
from services.gateway.text.tokenizer import TargetTokenizer, load_tokenizer
from shared.data.profiles import PassTimes, Profile, StepTimes
from shared.data.recording import Header, Recorded, Recording

NUM_TOKENS, NUM_STREAMS, ACCEPTANCE = 129, 8, 0.9
TIMES = Profile(name="no-compute", origin="made up", verifier=PassTimes(base_ms=2.0), drafter=StepTimes(step_ms=1.0))
ONE_BY_ONE = WindowChoice(1, 1, free_run=False)


def write_standin(tokenizer: TargetTokenizer, prompts: Sequence[str], folder: Path, seed: int) -> Standin:
    """Made-up answers to the prompts, right guesses by chance, and the shortest waits that hold on any machine."""
    generator = random.Random(seed)
    header = Header(
        target="made-up",
        draft="made-up",
        vocab_size=tokenizer.vocab_size,
        max_context=2048,
        origin="made up",
    )
    recorded = []
    for prompt in prompts:
        words = tokenizer.encode_text(f" {prompt}" * NUM_TOKENS)[:NUM_TOKENS]
        rights = tuple(generator.random() < ACCEPTANCE for _ in words)
        chat = tokenizer.encode_chat([ChatMessage(role="user", content=prompt)])
        recorded.append(Recorded(tuple(chat), tuple(words), rights, (0.9,) * len(words)))
    recording, profile = folder / "recording.jsonl", folder / "profile.json"
    Recording(header, tuple(recorded)).write(recording)
    profile.write_text(TIMES.model_dump_json(), encoding="utf-8")
    return Standin("replayed", profile, recording)


class Replaying:
    """A cell of stand-ins that is asked."""

    def __init__(self, cell: cells.Cell, gateway: GatewayClient, conductor: Conductor, prompts: Sequence[str]) -> None:
        self._cell = cell
        self._gateway = gateway
        self._conductor = conductor
        self._prompts = prompts

    async def rounds_ms(self, repeats: int) -> list[float]:
        """What a round takes beside compute, the mean of each of `repeats` answers.

        Guesses go one by one and each is waited for, so a round is a draft step, its way to the verifier, a pass, and
        the way back.
        """
        await self._conductor.choose(ONE_BY_ONE)
        found = []
        for number in range(repeats):
            (sample,) = await self._ask(DsdOptions("adaptive"), 1, number)
            assert sample.first_s is not None
            num_rounds = sample.num_tokens - 1 - sample.accepted  # each commits one token, and an accepted guess
            took_ms = (sample.total_s - sample.first_s) * 1e3 / num_rounds
            found.append(took_ms - TIMES.pass_times.base_ms - TIMES.step_times.step_ms)
        return found

    async def gateway_ms(self, speculation: DsdOptions, repeats: int) -> float:
        """The gateway's processor time for a token with several streams."""
        await self._conductor.choose(SLIDING)
        await self._ask(speculation, NUM_STREAMS, 0)
        before = self._cell.usage()[GATEWAY].cpu_s
        num_tokens = 0
        for number in range(repeats):
            num_tokens += sum(each.num_tokens for each in await self._ask(speculation, NUM_STREAMS, number))
        return (self._cell.usage()[GATEWAY].cpu_s - before) * 1e3 / num_tokens

    async def _ask(self, speculation: DsdOptions, num_streams: int, number: int) -> list[Sample]:
        options = AnswerOptions(NUM_TOKENS, temperature=0.0, speculation=speculation)
        asking = Asking(await self._gateway.first_model(), options, ignore_eos=True)
        now, indices = time.monotonic(), [(number + stream) % len(self._prompts) for stream in range(num_streams)]
        dues = [Due(index, self._prompts[index], now, now) for index in indices]
        samples = await asyncio.gather(*(measure(self._gateway, asking, due) for due in dues))
        failed = [sample.status for sample in samples if sample.status != OK]
        if failed:
            raise RuntimeError(f"a stand-in's answer came to {failed[0]}")
        return list(samples)


async def measure_services(models: Path, repeats: int, seed: int) -> tuple[list[float], dict[str, float], list[str]]:
    """Milliseconds of rounds, the gateway's of a token by way of serving, and complaints."""
    prompts = read_prompts(OWN)[: 2 * NUM_STREAMS]
    with TemporaryDirectory(prefix="dsd-bench-") as folder:
        standin = write_standin(load_tokenizer(models / "target"), prompts, Path(folder), seed)
        plan = CellPlan(models, names=NAMES, standin=standin)
        async with (
            cells.running(plan, Path(folder) / "run", print) as cell,
            conducting(cell.nats_url) as conductor,
            connected(cell.url) as gateway,
        ):
            replaying = Replaying(cell, gateway, conductor, prompts)
            await replaying.rounds_ms(1)
            rounds = await replaying.rounds_ms(repeats)
            gateway_ms = {
                name: await replaying.gateway_ms(speculation, repeats)
                for name, speculation in (("target-only", DsdOptions("off")), ("sliding", DsdOptions("adaptive")))
            }
            complaints = [each for each in cell.complaints() if OVERRUN not in each]
    return rounds, gateway_ms, complaints
