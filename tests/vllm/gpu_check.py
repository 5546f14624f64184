"""`make gpu-check` for the engine on vLLM: texts with and without guesses, and times of passes beside plain vLLM's.

python -m tests.vllm.gpu_check [--model FOLDER]. Without a GPU, or without vLLM, it says "not run". The model is the
given one, or random weights in the shape of a Llama of 7 billion parameters with grouped keys, whose KV cache of 64
sessions of 4,096 tokens takes 32 GiB. Exit status 1: too many texts differ, or one differs at no near-tie.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from services.cloud_verifier.settings import VerifierSettings
from shared.protocol.guesses import common_prefix

if TYPE_CHECKING:  # vLLM is imported when it is known to be there
    from services.cloud_verifier.sessions import SessionSlot
    from tests.vllm.driver import Driver

NUM_SESSIONS, NUM_GUESSES, CONTEXTS = (1, 16, 64), (1, 4), (256, 4096)
NUM_TOKENS, NUM_TEXTS, NUM_REPEATS = 64, 16, 12
NUM_DECODED = 512  # room for what sessions draw while the prompts of others are computed, and while they are timed
LEAST_EQUAL = 0.5  # of texts in bfloat16; random weights have many near-ties
NEAR_TIE = 1.0  # logits between the two best tokens; in bfloat16 a logit of 32 has steps of 0.25
SHAPE_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}


@dataclass(frozen=True, slots=True)
class Check:
    """What to measure. flags: of vLLM, for both sides."""

    model: Path
    vocab_size: int
    dtype: str = "bfloat16"
    flags: tuple[str, ...] = ()
    contexts: tuple[int, ...] = CONTEXTS
    num_sessions: tuple[int, ...] = NUM_SESSIONS
    num_repeats: int = NUM_REPEATS

    @property
    def all_flags(self) -> list[str]:
        longest = max(self.contexts) + NUM_DECODED + NUM_TOKENS
        return [*self.flags, "--max-model-len", str(longest), "--skip-tokenizer-init"]

    @property
    def least_equal(self) -> float:
        """Share of texts that must be equal with guesses and without."""
        is_exact = self.dtype == "float32" or os.environ.get("VLLM_BATCH_INVARIANT", "0") != "0"
        return 1.0 if is_exact else LEAST_EQUAL

    def prompt(self, number: int, length: int) -> list[int]:
        return np.random.default_rng(number).integers(3, self.vocab_size, length).tolist()


def why_not() -> str:
    """Why nothing can be measured here; empty if it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    import torch

    return "" if torch.cuda.is_available() else "there is no CUDA device"


def random_model(folder: Path) -> int:
    """Writes the configuration of a 7B Llama; vLLM makes the weights. Returns the size of its vocabulary."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config | SHAPE_7B))
    return 32000


def measure(check: Check) -> bool:
    """Prints everything. Returns whether the texts are as equal as expected."""
    plain = plain_times(check)
    from services.cloud_verifier.vllm_engine import environment

    settings = VerifierSettings(
        target=str(check.model),
        engine="vllm",
        dtype=check.dtype,
        token_budget=2048,
        prefill_chunk=512,
        vllm_args=" ".join(check.all_flags),
    )
    environment.prepare(settings)
    from services.cloud_verifier.vllm_engine.engine import load_engine
    from services.cloud_verifier.vllm_engine.flags import engine_args
    from tests.vllm.driver import Driver

    engine = load_engine(settings, engine_args(settings))
    driver = Driver(engine, settings.token_budget, settings.prefill_chunk)
    try:
        is_lossless = check_texts(driver, check)
        print("sessions  context  guesses  ms a pass  plain vLLM, ms a token of each")
        for context in check.contexts:
            for num_sessions in check.num_sessions:
                for guesses in (0, *NUM_GUESSES):
                    took = pass_ms(driver, check, num_sessions, context, guesses)
                    told = f"{plain[f'{num_sessions} x {context}']:10.1f}" if guesses == 0 else ""
                    shown = "does not fit" if took is None else f"{took:10.1f}"
                    print(f"{num_sessions:8} {context:8} {guesses:8} {shown} {told}", flush=True)
    finally:
        engine.shutdown()
    return is_lossless


def check_texts(driver: Driver, check: Check) -> bool:
    """Compares texts with and without guesses, and prints how near each different one was to being equal."""
    from tests.vllm.driver import answer_of, opening

    requests = [opening(number, check.prompt(number, 64), NUM_TOKENS) for number in range(NUM_TEXTS)]
    alone = driver.answers(*requests)
    slots = [driver.opens_new(request) for request in requests]
    driver.finish(*slots, right=alone)
    guessed = [answer_of(slot) for slot in slots]
    for slot in slots:
        driver.close(slot.state.session_id, 1, 0.0)
    gaps = []
    for number, (one, other) in enumerate(zip(alone, guessed, strict=True)):
        if one != other:
            index = common_prefix(one, other)
            gaps.append(top_gap(driver, [*check.prompt(number, 64), *one[:index]]))
            print(f"text {number} differs from token {index} on: gap of the two best logits {gaps[-1]:.2e}")
    print(f"{NUM_TEXTS - len(gaps)} of {NUM_TEXTS} texts of {NUM_TOKENS} tokens are equal with guesses and without")
    print(f"expected: {check.least_equal:.0%} or more, and gaps below {NEAR_TIE}", flush=True)
    return NUM_TEXTS - len(gaps) >= check.least_equal * NUM_TEXTS and all(gap < NEAR_TIE for gap in gaps)


def top_gap(driver: Driver, text: Sequence[int]) -> float:
    """Difference of the two highest logits after a text."""
    from tests.vllm.driver import opening

    slot = driver.opens_new(opening(0, text, 1, logprobs=2))
    driver.finish(slot)
    (drawn,) = slot.state.logprobs
    driver.close(slot.state.session_id, 1, 0.0)
    return drawn.top_logprobs[0] - drawn.top_logprobs[1]


def pass_ms(driver: Driver, check: Check, num_sessions: int, context: int, num_guesses: int) -> float | None:
    """Median milliseconds of a pass of decoding sessions, each with so many guesses, all of them wrong or right.

    None: not all of them are in each pass, since their KV cache does not fit.
    """
    from tests.vllm.driver import opening

    before = driver.engine.num_preemptions
    slots = [driver.opens_new(opening(n, check.prompt(n, context), NUM_DECODED)) for n in range(num_sessions)]
    try:
        while any(slot.state.length == context for slot in slots):
            driver.run_pass()
            if driver.engine.num_preemptions > before or any(slot.waits or slot.state.finish for slot in slots):
                return None
        return time_passes(driver, slots, num_guesses, check.num_repeats)
    finally:
        for slot in slots:
            driver.close(slot.state.session_id, 1, 0.0)


def time_passes(driver: Driver, slots: Sequence[SessionSlot], num_guesses: int, num_repeats: int) -> float | None:
    """Median milliseconds of a pass; None if one answers fewer than all sessions."""
    times = []
    for _ in range(num_repeats):
        for slot in slots:
            if num_guesses:
                driver.guess(slot, [5] * num_guesses)
        started = time.perf_counter()
        if driver.run_pass() < len(slots):
            return None
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[2:])


def plain_times(check: Check) -> dict[str, float]:
    """Milliseconds a token of plain vLLM by sessions and context, from a process of its own."""
    most = max(check.num_sessions)
    asked = {
        "model": str(check.model),
        "flags": [*check.all_flags, "--dtype", check.dtype],
        "prompts": {str(each): [check.prompt(n, each) for n in range(most)] for each in check.contexts},
        "num_sessions": list(check.num_sessions),
    }
    command = [sys.executable, "-m", __spec__.name if __spec__ else "tests.vllm.gpu_check", "--plain"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"plain vLLM failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def time_plain(
    model: str, flags: Sequence[str], prompts: dict[str, list[list[int]]], num_sessions: Sequence[int]
) -> None:
    """Times vLLM's own engine: after a warm-up two lengths of answers, whose difference is decoding alone.

    Without a prefix cache: else only one of them computes the prompts.
    """
    from vllm import LLM, EngineArgs, SamplingParams
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(add_help=False)
    given = vars(EngineArgs.add_cli_args(parser).parse_args(list(flags)))
    chosen = {name: value for name, value in given.items() if value != parser.get_default(name)}
    llm = LLM(model=model, max_num_seqs=64, enable_prefix_caching=False, **chosen)
    found = {}
    for context, texts in prompts.items():
        for num in num_sessions:
            took = []
            for num_tokens in (8, 8, 8 + NUM_TOKENS):
                params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
                started = time.perf_counter()
                llm.generate([{"prompt_token_ids": text} for text in texts[:num]], params, use_tqdm=False)
                took.append(time.perf_counter() - started)
            found[f"{num} x {context}"] = (took[2] - took[1]) * 1e3 / NUM_TOKENS
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.vllm.gpu_check")
    parser.add_argument("--model", type=Path, help="folder of a model; default: random weights of 7B")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        time_plain(**json.load(sys.stdin))
        return
    if reason := why_not():
        print(f"the engine on vLLM: not run, {reason}")
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or Path(folder)
        flags = () if arguments.model else ("--load-format", "dummy")
        size = json.loads((model / "config.json").read_text())["vocab_size"] if arguments.model else random_model(model)
        sys.exit(0 if measure(Check(model, size, flags=flags)) else 1)


if __name__ == "__main__":
    main()
