"""Greedy float32 answers of the built-in engine, made in another process: its compiler must not be beside vLLM."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling
from tests.e2e.harness import running
from tests.e2e.ways import Way, answers


def built_in_texts(target: Path, prompts: Sequence[list[int]], stop_ids: Sequence[int]) -> list[list[int]]:
    """The answers of up to 64 tokens to all prompts."""
    asked = json.dumps({"target": str(target), "prompts": list(prompts), "stop_ids": list(stop_ids)})
    done = subprocess.run([sys.executable, "-m", __name__], input=asked, capture_output=True, text=True, check=True)
    texts: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return texts


async def _answers(target: str, prompts: Sequence[list[int]], stop_ids: Sequence[int]) -> list[list[int]]:
    from services.cloud_verifier.torch_engine.model import load_target

    model = load_target(target, "cpu", "float32", 1)
    async with running(MemoryNetwork().connect, [model], []) as cell:
        requests = [(prompt, Sampling()) for prompt in prompts]
        texts, _ = await answers(cell, requests, stop_ids, Way(0, num_at_once=8))
    return texts


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_answers(**json.load(sys.stdin)))))
