"""Steps of a drafter: their time against a bare ONNX Runtime run of the same graph, and how many guesses they make.

Invariant: drafter and bare graph run in this process and take turns. The drafter gets no verdicts, so it drafts exactly
one window for a session.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
from prometheus_client import CollectorRegistry

from services.edge_drafter.draft_config import GenaiConfig, read_config
from services.edge_drafter.graphs.graph import numpy_type, open_session
from services.edge_drafter.graphs.providers import Providers
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.model import load_draft
from services.edge_drafter.service import Drafter
from services.edge_drafter.settings import DrafterSettings
from shared.bus.bus import Absent, Bus
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol import subjects
from shared.protocol.messages import (
    NO_TOKENS,
    Close,
    Draft,
    Heartbeat,
    Message,
    Sampling,
    Speculate,
    Speculation,
    TokenIds,
)

CONTEXT, NUM_STEPS = 256, 32  # prompt tokens, and measured steps
HISTORY, NUM_NEW = 2000, 32  # tokens of a chat before its second turn, and of the question in it
CHUNK = 64  # tokens of the history that are read at once


def bare_step(folder: Path, num_tokens: int) -> Callable[[], None]:
    """One run of the draft's graph after `num_tokens` tokens, with all buffers bound in advance."""
    config = read_config(folder)
    assert isinstance(config, GenaiConfig), "the default drafts have an onnxruntime-genai configuration"
    session = open_session(folder / config.file, 1, Providers())
    nodes = (*session.get_inputs(), *session.get_outputs())
    types = {node.name: numpy_type(node) for node in nodes if "float" in node.type}
    binding = session.io_binding()
    shape = [1, config.num_kv_heads, num_tokens + 1, config.head_size]
    for past, present in config.kv:
        buffer = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, types[past]))
        binding.bind_ortvalue_input(past, buffer)
        binding.bind_ortvalue_output(present, buffer)
    binding.bind_cpu_input(config.ids, np.array([[1000]], dtype=np.int64))
    binding.bind_cpu_input(config.mask, np.ones((1, num_tokens + 1), dtype=np.int64))
    logits = ort.OrtValue.ortvalue_from_shape_and_type([1, 1, config.vocab_size], types[config.logits])
    binding.bind_ortvalue_output(config.logits, logits)
    return lambda: session.run_with_iobinding(binding)


class DraftStepClient:
    """Asks a drafter on a bus to guess, and never answers its guesses."""

    def __init__(self, bus: Bus, drafter: Drafter) -> None:
        self._bus = bus
        self._drafter_id = drafter.instance_id
        self._verifier_id = subjects.new_instance_id("bench")
        self._gateway_id = subjects.new_instance_id("bench")
        self._drafts: asyncio.Queue[Draft] = asyncio.Queue()
        self._next: dict[str, int] = {}  # position of each session's next guess
        self.is_alive = asyncio.Event()  # the drafter has sent a heartbeat

    async def listen(self) -> None:
        await self._bus.subscribe(subjects.inbox("verifier", self._verifier_id), self._receive)
        await self._bus.subscribe(subjects.all_broadcasts(Heartbeat, "drafter"), self._receive)

    def _receive(self, subject: str, message: Message | Absent) -> None:
        match message:
            case Draft() if message.token_ids:
                if message.base >= self._next.get(message.session_id, 0):  # else it was sent before: no verdict comes
                    self._next[message.session_id] = message.base + len(message.token_ids)
                    self._drafts.put_nowait(message)
            case Heartbeat() if message.instance_id == self._drafter_id:
                self.is_alive.set()

    async def step_ms(self, prompt_ids: Sequence[int]) -> float:
        """Mean step time from the first guess after the prompt to the last one of the window."""
        (sent,) = await self._windows([prompt_ids])
        return (sent[-1].sent_ms - sent[0].sent_ms) / (NUM_STEPS - len(sent[0].token_ids))

    async def guesses_per_s(self, prompts: Sequence[Sequence[int]]) -> float:
        """Guesses for sessions at once, from when the last of them has its first to when the first has its last."""
        windows = await self._windows(prompts)
        begin_ms = max(sent[0].sent_ms for sent in windows)
        end_ms = min(sent[-1].sent_ms for sent in windows)
        drafts = [draft for sent in windows for draft in sent if begin_ms < draft.sent_ms <= end_ms]
        return sum(len(draft.token_ids) for draft in drafts) / (end_ms - begin_ms) * 1e3

    async def first_guess_ms(self, prompt_ids: Sequence[int], scope: str) -> float:
        """From the beginning of a session until its first guess is sent."""
        started_ms = time.monotonic() * 1e3
        (sent,) = await self._windows([prompt_ids], scope)
        return sent[0].sent_ms - started_ms

    async def _windows(self, prompts: Sequence[Sequence[int]], scope: str | None = None) -> list[list[Draft]]:
        """The drafts of a window for each prompt, of sessions at once."""
        windows: dict[str, list[Draft]] = {subjects.new_session_id(): [] for _ in prompts}
        for session_id, prompt_ids in zip(windows, prompts, strict=True):
            request = Speculate(
                session_id,
                1,
                self._verifier_id,
                TokenIds(prompt_ids),
                NO_TOKENS,
                Sampling(),
                NO_TOKENS,
                2 * NUM_STEPS,
                Speculation("static", NUM_STEPS),
                cache_scope=scope,
            )
            await self._send(request)
        while any(sum(len(draft.token_ids) for draft in sent) < NUM_STEPS for sent in windows.values()):
            draft = await self._drafts.get()
            windows[draft.session_id].append(draft)
        for session_id in windows:
            await self._send(Close(session_id, 1))
        return list(windows.values())

    async def _send(self, message: Message) -> None:
        await self._bus.publish(subjects.to("drafter", self._drafter_id, type(message), self._gateway_id), message)


@asynccontextmanager
async def drafting(folder: Path) -> AsyncIterator[DraftStepClient]:
    """The client of a running drafter."""
    network = MemoryNetwork()
    drafter_id = subjects.new_instance_id("drafter")
    settings = DrafterSettings(draft=str(folder), name="drafter")
    bus = network.connect()
    model = load_draft(str(folder), 1, settings.prefix_cache_tokens)
    drafter = Drafter(drafter_id, settings, model, bus, DrafterMetrics(CollectorRegistry()))
    await drafter.loop.warm_up()
    client = DraftStepClient(network.connect(), drafter)
    await client.listen()
    work = asyncio.create_task(drafter.run(), name="drafter")
    try:
        await client.is_alive.wait()
        yield client
    finally:
        work.cancel()
        await asyncio.wait({work})


def random_prompt(generator: random.Random, num_tokens: int = CONTEXT) -> list[int]:
    return [generator.randrange(1000, 40_000) for _ in range(num_tokens)]


async def measure_steps(folder: Path, repeats: int, seed: int) -> tuple[list[float], list[float]]:
    """Step times of the drafter and of the bare graph in milliseconds, [repeats] each."""
    generator, bare = random.Random(seed), bare_step(folder, CONTEXT + NUM_STEPS // 2)
    ours: list[float] = []
    bares: list[float] = []
    async with drafting(folder) as client:
        for _ in range(repeats + 1):
            ours.append(await client.step_ms(random_prompt(generator)))
            started = time.perf_counter()
            for _ in range(NUM_STEPS):
                bare()
            bares.append((time.perf_counter() - started) * 1e3 / NUM_STEPS)
    return ours[1:], bares[1:]


async def measure_throughput(folder: Path, counts: Sequence[int], repeats: int, seed: int) -> dict[int, list[float]]:
    """Guesses per second by the number of sessions at once, [repeats] each. The numbers take turns in random order."""
    generator = random.Random(seed)
    found: dict[int, list[float]] = {num: [] for num in counts}
    async with drafting(folder) as client:
        for _ in range(repeats + 1):
            for num in generator.sample(list(counts), len(counts)):
                found[num].append(await client.guesses_per_s([random_prompt(generator) for _ in range(num)]))
    return {num: figures[1:] for num, figures in found.items()}


async def measure_second_turn(folder: Path, repeats: int, seed: int) -> tuple[list[float], list[float]]:
    """Milliseconds [repeats] to the first guess of a chat's second turn, and of the model alone for its new tokens."""
    generator = random.Random(seed)
    bare = load_draft(str(folder), 1)
    cache = bare.new_cache(HISTORY + NUM_NEW)
    for start in range(0, HISTORY, CHUNK):
        bare.feed(cache, random_prompt(generator, min(CHUNK, HISTORY - start)), start)
    turns: list[float] = []
    alone: list[float] = []
    async with drafting(folder) as client:
        for number in range(repeats + 1):
            chat, history = f"chat {number}", random_prompt(generator, HISTORY)
            await client.first_guess_ms(history, chat)
            question = random_prompt(generator, NUM_NEW)
            turns.append(await client.first_guess_ms([*history, *question], chat))
            started = time.perf_counter()
            bare.feed(cache, question, HISTORY)
            alone.append((time.perf_counter() - started) * 1e3)
    return turns[1:], alone[1:]
