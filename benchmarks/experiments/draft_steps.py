"""Step time of a drafter against a bare ONNX Runtime run of the same graph.

Invariant: both run in this process and take turns. The drafter gets no verdicts, so it drafts exactly one window.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from prometheus_client import CollectorRegistry

from services.edge_drafter.draft_config import GenaiConfig, read_config
from services.edge_drafter.graph import numpy_type, open_session
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


def bare_step(folder: Path, num_tokens: int) -> Callable[[], None]:
    """One run of the draft's graph after `num_tokens` tokens, with all buffers bound in advance."""
    config = read_config(folder)
    assert isinstance(config, GenaiConfig), "the default drafts have an onnxruntime-genai configuration"
    session = open_session(folder / config.file, 1)
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
        self.is_alive = asyncio.Event()  # the drafter has sent a heartbeat

    async def listen(self) -> None:
        await self._bus.subscribe(subjects.inbox("verifier", self._verifier_id), self._receive)
        await self._bus.subscribe(subjects.all_broadcasts(Heartbeat, "drafter"), self._receive)

    def _receive(self, subject: str, message: Message | Absent) -> None:
        match message:
            case Draft() if message.token_ids:
                self._drafts.put_nowait(message)
            case Heartbeat() if message.instance_id == self._drafter_id:
                self.is_alive.set()

    async def step_ms(self, prompt_ids: Sequence[int]) -> float:
        """Mean step time from the first guess after the prompt to the last one of the window."""
        session_id = subjects.new_session_id()
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
        )
        await self._send(request)
        sent = [await self._drafts.get()]
        while sent[-1].base + len(sent[-1].token_ids) < CONTEXT + NUM_STEPS:
            sent.append(await self._drafts.get())
        await self._send(Close(session_id, 1))
        return (sent[-1].sent_ms - sent[0].sent_ms) / (NUM_STEPS - len(sent[0].token_ids))

    async def _send(self, message: Message) -> None:
        await self._bus.publish(subjects.to("drafter", self._drafter_id, type(message), self._gateway_id), message)


async def measure_steps(folder: Path, repeats: int, seed: int) -> tuple[list[float], list[float]]:
    """Step times of the drafter and of the bare graph in milliseconds, [repeats] each."""
    network, generator = MemoryNetwork(), random.Random(seed)
    drafter_id = subjects.new_instance_id("drafter")
    settings = DrafterSettings(draft=str(folder), name="drafter")
    bus = network.connect()
    drafter = Drafter(drafter_id, settings, load_draft(str(folder), 1), bus, DrafterMetrics(CollectorRegistry()))
    await drafter.loop.warm_up()
    bare = bare_step(folder, CONTEXT + NUM_STEPS // 2)
    client = DraftStepClient(network.connect(), drafter)
    await client.listen()
    work = asyncio.create_task(drafter.run(), name="drafter")
    ours: list[float] = []
    bares: list[float] = []
    try:
        await client.is_alive.wait()
        for _ in range(repeats + 1):
            ours.append(await client.step_ms([generator.randrange(1000, 40_000) for _ in range(CONTEXT)]))
            started = time.perf_counter()
            for _ in range(NUM_STEPS):
                bare()
            bares.append((time.perf_counter() - started) * 1e3 / NUM_STEPS)
    finally:
        work.cancel()
        await asyncio.wait({work})
    return ours[1:], bares[1:]
