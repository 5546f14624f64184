"""Time of the services without models and network: real services around replayed stand-ins on this machine.

Invariant: the waits of the stand-ins (TIMES) are subtracted. Overruns of such short waits do not void the figures: they
count as DSD's own time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.cell import RunningCell, running
from benchmarks.harness.cell_plan import GATEWAY, WITHOUT_CONTROLLER, CellPlan, StandinPlan
from benchmarks.harness.latency import OK, RequestSample
from benchmarks.harness.prompts import DEFAULT_PROMPTS, encode_prompts
from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected, measure_request
from benchmarks.harness.scripted_controller import ScriptedController, scripted_controller, stop_and_wait
from benchmarks.harness.standin import OVERRUN
from benchmarks.policies.plan import SLIDING
from client.gateway import GatewayClient
from client.wire import AnswerOptions, DsdOptions
from model_zoo.prompt_file import read_prompts
from services.gateway.text.tokenizer import TargetTokenizer, load_tokenizer
from shared.data.profiles import PassTimes, Profile, StepTimes
from shared.data.recording import Header, Recorded, Recording

NUM_TOKENS, NUM_STREAMS, ACCEPTANCE = 129, 8, 0.9
TIMES = Profile(name="no-compute", origin="made up", verifier=PassTimes(base_ms=2.0), drafter=StepTimes(step_ms=1.0))


def write_standin(tokenizer: TargetTokenizer, prompts: Sequence[str], folder: Path, seed: int) -> StandinPlan:
    """A stand-in with made-up answers, random acceptance and waits so short that most machines keep them."""
    generator = random.Random(seed)
    header = Header(
        target="made-up",
        draft="made-up",
        vocab_size=tokenizer.vocab_size,
        max_context=2048,
        origin="made up",
    )
    recorded = []
    for prompt, prompt_ids in zip(prompts, encode_prompts(tokenizer, prompts), strict=True):
        words = tokenizer.encode_text(f" {prompt}" * NUM_TOKENS)[:NUM_TOKENS]
        rights = tuple(generator.random() < ACCEPTANCE for _ in words)
        recorded.append(Recorded(tuple(prompt_ids), tuple(words), rights, (0.9,) * len(words)))
    recording, profile = folder / "recording.jsonl", folder / "profile.json"
    Recording(header, tuple(recorded)).write(recording)
    profile.write_text(TIMES.model_dump_json(), encoding="utf-8")
    return StandinPlan("replayed", profile, recording)


class StandinSystem:
    """A running cell of stand-ins, with its clients."""

    def __init__(
        self, cell: RunningCell, gateway: GatewayClient, controller: ScriptedController, prompts: Sequence[str]
    ) -> None:
        self._cell = cell
        self._gateway = gateway
        self._controller = controller
        self._prompts = prompts

    async def rounds_ms(self, repeats: int) -> list[float]:
        """Mean time of a round without compute, for each of `repeats` answers.

        With window 1 a round is a draft step, the way to the verifier, a pass, and the way back.
        """
        await self._controller.choose(stop_and_wait(1))
        found = []
        for number in range(repeats):
            (sample,) = await self.answers(DsdOptions("adaptive"), 1, number)
            assert sample.first_s is not None
            # Each round commits one token, or two with an accepted guess.
            num_rounds = sample.num_tokens - 1 - sample.accepted
            took_ms = (sample.total_s - sample.first_s) * 1e3 / num_rounds
            found.append(took_ms - TIMES.pass_times.base_ms - TIMES.step_times.step_ms)
        return found

    async def gateway_ms(self, speculation: DsdOptions, repeats: int) -> float:
        """The gateway's processor time per token with NUM_STREAMS streams."""
        await self._controller.choose(SLIDING)
        await self.answers(speculation, NUM_STREAMS, 0)
        before = self._cell.usage()[GATEWAY].cpu_s
        num_tokens = await self.num_tokens(speculation, NUM_STREAMS, repeats)
        return (self._cell.usage()[GATEWAY].cpu_s - before) * 1e3 / num_tokens

    async def num_tokens(self, speculation: DsdOptions, num_streams: int, repeats: int) -> int:
        """Tokens of `repeats` answers of each stream."""
        rounds = [await self.answers(speculation, num_streams, number) for number in range(repeats)]
        return sum(sample.num_tokens for samples in rounds for sample in samples)

    async def answers(self, speculation: DsdOptions, num_streams: int, number: int) -> list[RequestSample]:
        """So many answers at once, to other prompts for each number."""
        options = AnswerOptions(NUM_TOKENS, temperature=0.0, speculation=speculation)
        template = RequestTemplate(await self._gateway.first_model(), options, ignore_eos=True)
        now, indices = time.monotonic(), [(number + stream) % len(self._prompts) for stream in range(num_streams)]
        requests = [ScheduledRequest(index, self._prompts[index], now, now) for index in indices]
        samples = await asyncio.gather(*(measure_request(self._gateway, template, each) for each in requests))
        failed = [sample.status for sample in samples if sample.status != OK]
        if failed:
            raise RuntimeError(f"a request failed: {failed[0]}")
        return list(samples)


async def measure_services(models: Path, repeats: int, seed: int) -> tuple[list[float], dict[str, float], list[str]]:
    """Round times, the gateway's time per token by serving mode, both in milliseconds, and complaints."""
    prompts = read_prompts(DEFAULT_PROMPTS)[: 2 * NUM_STREAMS]
    with TemporaryDirectory(prefix="dsd-bench-") as folder:
        standin = write_standin(load_tokenizer(models / "target"), prompts, Path(folder), seed)
        plan = CellPlan(models, names=WITHOUT_CONTROLLER, standin=standin)
        async with (
            running(plan, Path(folder) / "run", print) as cell,
            scripted_controller(cell.nats_url) as controller,
            connected(cell.url) as gateway,
        ):
            system = StandinSystem(cell, gateway, controller, prompts)
            await system.rounds_ms(1)
            rounds = await system.rounds_ms(repeats)
            gateway_ms = {
                name: await system.gateway_ms(speculation, repeats)
                for name, speculation in (("target-only", DsdOptions("off")), ("sliding", DsdOptions("adaptive")))
            }
            complaints = [each for each in cell.complaints() if OVERRUN not in each]
    return rounds, gateway_ms, complaints
