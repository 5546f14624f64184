"""aiperf puts both endpoints under load and reads speculation's figures. argv: URL, model, folder of the tokenizer."""

import json
import os
import subprocess
import sys
from pathlib import Path

NUM_REQUESTS, OUTPUT_TOKENS = 6, 24


def profile(url: str, model: str, tokenizer: str, kind: str) -> dict:
    folder = Path(kind)
    options = {
        "model": model,
        "url": url,
        "endpoint-type": kind,
        "tokenizer": tokenizer,
        "synthetic-input-tokens-mean": "32",
        "output-tokens-mean": str(OUTPUT_TOKENS),
        "request-count": str(NUM_REQUESTS),
        "concurrency": "2",
        "random-seed": "1",
        "extra-inputs": "ignore_eos:true",
        "artifact-dir": str(folder),
        "ui": "none",
    }
    command = [str(Path(sys.executable).with_name("aiperf")), "profile", "--streaming", "--no-gpu-telemetry"]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    # Told to be offline, it looks for folders of tokenizers in its cache alone.
    online = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    subprocess.run(command, check=True, stdout=sys.stderr, env=online)
    return json.loads((folder / "profile_export_aiperf.json").read_text(encoding="utf-8"))


def main(url: str, model: str, tokenizer: str) -> None:
    seen = {}
    for kind in ("chat", "completions"):
        told = profile(url, model, tokenizer, kind)
        assert not told.get("error_summary"), told["error_summary"]
        assert told["request_count"]["avg"] == NUM_REQUESTS, told["request_count"]
        assert told["time_to_first_token"]["avg"] > 0, told["time_to_first_token"]
        acceptance = told["spec_decode_acceptance_length"]
        assert acceptance["min"] >= 1, acceptance
        seen[kind] = {"requests": told["request_count"]["avg"], "acceptance_length": acceptance["avg"]}
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
