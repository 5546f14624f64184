"""guidellm puts both endpoints under load with prompts of its own. argv: URL, model, folder of the tokenizer."""

import json
import os
import subprocess
import sys
from pathlib import Path

NUM_REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 6, 32, 16
PATHS = ("/v1/chat/completions", "/v1/completions")


def benchmark(url: str, model: str, tokenizer: str, path: str) -> dict:
    report = Path(path.rsplit("/", 1)[-1] + ".json")
    options = {
        "backend": {"kind": "openai_http", "target": url, "model": model, "request_format": path},
        "profile": {"kind": "concurrent", "streams": 2},
        "constraint": {"kind": "max_requests", "count": NUM_REQUESTS},
        "data": {"kind": "synthetic_text", "prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS},
        "tokenizer": {"kind": "huggingface_auto", "model": tokenizer},
        "output": {"kind": "json", "path": str(report)},
    }
    command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
    command += [part for name, value in options.items() for part in (f"--{name}", json.dumps(value))]
    environment = os.environ | {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
    (told,) = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    return told


def main(url: str, model: str, tokenizer: str) -> None:
    seen = {}
    for path in PATHS:
        metrics = benchmark(url, model, tokenizer, path)["metrics"]
        totals = metrics["request_totals"]
        assert (totals["successful"], totals["errored"]) == (NUM_REQUESTS, 0), totals
        output = metrics["output_token_count"]["successful"]["mean"]
        assert output == OUTPUT_TOKENS, f"{path}: {output} tokens per answer"
        ttft_ms = metrics["time_to_first_token_ms"]["successful"]["mean"]
        assert ttft_ms > 0, metrics["time_to_first_token_ms"]
        seen[path] = {"requests": totals["successful"], "output_tokens": output, "ttft_ms": ttft_ms}
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
