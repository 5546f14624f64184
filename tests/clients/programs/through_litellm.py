"""LiteLLM's proxy in front of the gateway, and an OpenAI client in front of the proxy. argv: URL, model, a free port.

What the proxy tells must be what the gateway tells.
"""

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI
from pydantic import BaseModel, Field

READY_S = 300
KEY = f"sk-{secrets.token_hex(32)}"  # of the proxy, which refuses to start without one
ASKED = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Rome"]}},
                "required": ["city"],
            },
        },
    }
]


class Answer(BaseModel):
    capital: str = Field(max_length=12)
    is_sure: bool


@contextmanager
def proxy(url: str, model: str, port: str):
    """The proxy with the gateway as a vLLM (`vllm`) and as any server of OpenAI's API (`any`)."""
    models = [
        {"model_name": name, "litellm_params": {"model": f"{kind}/{model}", "api_base": f"{url}/v1", "api_key": "none"}}
        for name, kind in (("vllm", "hosted_vllm"), ("any", "openai"))
    ]
    Path("config.json").write_text(json.dumps({"model_list": models}), encoding="utf-8")
    program = Path(sys.executable).with_name("litellm")
    command = [program, "--config", "config.json", "--host", "127.0.0.1", "--port", port, "--telemetry", "False"]
    known = os.environ | {"LITELLM_MASTER_KEY": KEY}
    with Path("litellm.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, env=known) as process:
        try:
            wait(process, f"http://127.0.0.1:{port}/health/liveliness")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait(process: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            log = Path("litellm.log").read_text()[-4000:]
            assert process.poll() is None, f"the proxy ended:\n{log}"
            assert time.monotonic() < deadline, f"the proxy does not answer:\n{log}"
            time.sleep(0.5)


def answers(client: OpenAI, model: str) -> dict:
    """A text whole and streamed, an object, and a call."""
    options = {"model": model, "messages": ASKED, "max_tokens": 128, "seed": 7, "temperature": 0.7}
    create = client.chat.completions.create
    whole = create(**options).choices[0].message.content
    chunks = list(create(**options, stream=True, stream_options={"include_usage": True}))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole, (streamed, whole)
    assert chunks[-1].usage.completion_tokens > 0, chunks[-1]
    parsed = client.chat.completions.parse(**options, response_format=Answer).choices[0].message.parsed
    called = create(**options, tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0]
    (call,) = called.message.tool_calls
    return {
        "text": whole,
        "object": parsed.model_dump(),
        "call": [call.function.name, json.loads(call.function.arguments), called.finish_reason],
    }


def main(url: str, model: str, port: str) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        direct = answers(client, model)
    with proxy(url, model, port) as address, OpenAI(base_url=address, api_key=KEY, max_retries=0) as client:
        for name in ("vllm", "any"):
            proxied = answers(client, name)
            assert proxied == direct, f"{name}: {proxied} is not {direct}"
    print(json.dumps(direct))


if __name__ == "__main__":
    main(*sys.argv[1:])
