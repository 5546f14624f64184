"""`vllm bench serve` puts both endpoints under load with random prompts. argv: URL, model, folder of the tokenizer.

The command itself asks for a distribution named vllm; the CPU build has another name. So its parts are called.
"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from vllm.benchmarks.serve import add_cli_args
from vllm.benchmarks.serve import main as serve
from vllm.utils.argparse_utils import FlexibleArgumentParser

NUM_PROMPTS, INPUT_TOKENS, OUTPUT_TOKENS = 6, 32, 16


def bench(url: str, tokenizer: str, backend: str, endpoint: str, *more: str) -> dict:
    options = {
        "backend": backend,
        "base-url": url,
        "endpoint": endpoint,
        "tokenizer": tokenizer,
        "dataset-name": "random",
        "random-input-len": str(INPUT_TOKENS),
        "random-output-len": str(OUTPUT_TOKENS),
        "num-prompts": str(NUM_PROMPTS),
        "max-concurrency": "2",
        "seed": "1",
        "result-filename": f"{backend}.json",
    }
    arguments = ["--ignore-eos", "--disable-tqdm", "--save-result", *more]
    arguments += [part for name, value in options.items() for part in (f"--{name}", value)]
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    with redirect_stdout(sys.stderr):
        serve(parser.parse_args(arguments))
    return json.loads(Path(f"{backend}.json").read_text(encoding="utf-8"))


def main(url: str, model: str, tokenizer: str) -> None:
    seen = {}
    named = ("--model", tokenizer, "--served-model-name", model)
    for backend, endpoint, more in (
        ("openai", "/v1/completions", ()),  # the first model that the server names
        ("openai-chat", "/v1/chat/completions", named),
    ):
        told = bench(url, tokenizer, backend, endpoint, *more)
        assert (told["completed"], told["failed"]) == (NUM_PROMPTS, 0), told
        assert told["total_output_tokens"] == NUM_PROMPTS * OUTPUT_TOKENS, told
        assert told["mean_ttft_ms"] > 0, told
        seen[backend] = {"completed": told["completed"], "output_tokens": told["total_output_tokens"]}
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
