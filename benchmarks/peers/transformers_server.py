"""`generate` of transformers behind OpenAI's streaming API: python -m benchmarks.peers.transformers_server.

All requests that wait when a call of `generate` begins are one batch, padded on the left; later ones wait for the next.

Invariant: answers have exactly `max_tokens` tokens. The model computes in one thread of its own, with two of torch's.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from aiohttp import web
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from benchmarks.peers.systems import TRANSFORMERS_READY_LINE

GATHER_S = 0.02  # for requests that were sent together
UNFINISHED = "�"  # at the end of a text that ends within a character


@dataclass(frozen=True, slots=True)
class Request:
    """A waiting request. events: texts, and None at the end."""

    token_ids: list[int]
    max_tokens: int
    temperature: float
    events: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)

    @property
    def kind(self) -> tuple[int, float]:
        """Requests of one kind fit one batch."""
        return self.max_tokens, self.temperature


class BatchStreamer(BaseStreamer):
    """Sends each row's new text to its request."""

    def __init__(self, tokenizer: Any, batch: Sequence[Request], loop: asyncio.AbstractEventLoop) -> None:
        self._tokenizer, self._batch, self._loop = tokenizer, batch, loop
        self._ids: list[list[int]] = [[] for _ in batch]
        self._sent = [0] * len(batch)
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        for row, token_id in enumerate(value.tolist()):
            self._ids[row].append(token_id)
            text = self._tokenizer.decode(self._ids[row], skip_special_tokens=True)
            if not text.endswith(UNFINISHED):
                self._send(row, text[self._sent[row] :])
                self._sent[row] = len(text)

    def end(self) -> None:
        for row, ids in enumerate(self._ids):
            self._send(row, self._tokenizer.decode(ids, skip_special_tokens=True)[self._sent[row] :])
            self._send(row, None)

    def _send(self, row: int, text: str | None) -> None:
        if text != "":
            self._loop.call_soon_threadsafe(self._batch[row].events.put_nowait, text)


class Generator:
    """The model and its thread."""

    def __init__(self, folder: Path, dtype: torch.dtype, loop: asyncio.AbstractEventLoop) -> None:
        torch.set_num_threads(2)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), padding_side="left")
        model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
        self._model = model.eval()
        self._loop = loop
        self._waiting: queue.Queue[Request] = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, request: Request) -> None:
        self._waiting.put(request)

    def _run(self) -> None:
        left: list[Request] = []
        while True:
            waiting = left or [self._waiting.get()]
            time.sleep(GATHER_S)
            while not self._waiting.empty():
                waiting.append(self._waiting.get())
            batch = [each for each in waiting if each.kind == waiting[0].kind]
            left = [each for each in waiting if each not in batch]
            self._generate(batch)

    def _generate(self, batch: Sequence[Request]) -> None:
        max_tokens, temperature = batch[0].kind
        padded = self.tokenizer.pad({"input_ids": [each.token_ids for each in batch]}, return_tensors="pt")
        how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        with torch.inference_mode():
            self._model.generate(
                **padded,
                **how,
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                streamer=BatchStreamer(self.tokenizer, batch, self._loop),
            )


def event(name: str, text: str | None, usage: dict[str, int] | None = None) -> bytes:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}}]
    chunk = {"id": "t", "object": "chat.completion.chunk", "created": 0, "model": name, "choices": choices}
    return b"data: " + msgspec.json.encode(chunk | ({"usage": usage} if usage else {})) + b"\n\n"


async def answer(http: web.Request) -> web.StreamResponse:
    generator = http.app[GENERATOR]
    body = msgspec.json.decode(await http.read())
    token_ids = generator.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    request = Request(token_ids, body["max_tokens"], body.get("temperature", 0.0))
    generator.add(request)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(http)
    while (text := await request.events.get()) is not None:
        await response.write(event(body["model"], text))
    usage = {"prompt_tokens": len(token_ids), "completion_tokens": request.max_tokens}
    await response.write(event(body["model"], None, usage) + b"data: [DONE]\n\n")
    return response


GENERATOR = web.AppKey("generator", Generator)


async def serve(folder: Path, dtype: torch.dtype, port: int) -> None:
    app = web.Application()
    app[GENERATOR] = Generator(folder, dtype, asyncio.get_running_loop())
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(TRANSFORMERS_READY_LINE, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.peers.transformers_server", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.model, getattr(torch, arguments.dtype), arguments.port))


if __name__ == "__main__":
    main()
