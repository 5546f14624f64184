"""Settings of a verifier. Every field is an environment variable DSD_<NAME> and a flag --<name>."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from shared.protocol.messages import MAX_WINDOW
from shared.runtime.config import ENV_PREFIX, ServiceSettings
from shared.runtime.home import DEFAULT_MODEL
from shared.timing import DRAFTER_LEASE_S


class VerifierSettings(ServiceSettings):
    """Settings of `python -m services.cloud_verifier`."""

    name: str = Field("verifier", description="Name of this instance, part of its subjects and permissions")
    engine: Literal["torch", "vllm"] = Field(
        "torch", description="Engine that computes the target: torch is built in, vllm must be installed"
    )
    vllm_args: str = Field("", description="vLLM's own flags, such as --tensor-parallel-size 2; engine vllm only")
    target: str = Field(..., description="Folder (or hub id) of the target model, a Hugging Face causal LM")
    model_name: str = Field(DEFAULT_MODEL, description="Name under which the model is served")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU when there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of the target; auto: of engine torch bfloat16 if the device supports it, else "
        "float32, of engine vllm the model's own. float16 is for engine vllm",
    )
    num_threads: int = Field(0, ge=0, description="CPU threads of the target model; 0: torch's default")
    prefill_threads: int = Field(
        0,
        ge=0,
        description="CPU threads of passes of 64 tokens or more, without a GPU; 0: num_threads; engine vllm only",
    )
    token_budget: int = Field(256, ge=1, description="Most tokens that one pass computes")
    prefill_chunk: int = Field(64, ge=1, description="Most prompt tokens of one session in a pass with decoding ones")
    kv_tokens: int = Field(32768, ge=64, description="KV cache to reserve for sessions, in tokens")
    lookup_tokens: int = Field(
        16,
        ge=0,
        le=MAX_WINDOW,
        description="The verifier adds guesses from the text up to so many of a session in a pass, the drafter's "
        "included; 0: none",
    )
    max_sessions: int = Field(64, ge=1, description="Most open sessions")
    lease_s: float = Field(30.0, gt=0, description="A session is closed after its gateway was silent for this time")
    drafter_lease_s: float = Field(
        DRAFTER_LEASE_S, gt=0, description="A session that has waited for guesses for this time in all runs free"
    )

    @model_validator(mode="after")
    def _budget_covers_sessions(self) -> VerifierSettings:
        if self.token_budget < self.max_sessions:
            raise ValueError(f"token_budget {self.token_budget} must be at least max_sessions {self.max_sessions}")
        return self

    @model_validator(mode="after")
    def _fit_the_engine(self) -> VerifierSettings:
        foreign = {"torch": {"vllm_args", "prefill_threads"}, "vllm": {"device", "kv_tokens"}}[self.engine]
        foreign &= self.model_fields_set
        if foreign:
            raise ValueError(f"{foreign.pop()} is not for engine {self.engine}")
        if self.engine == "torch" and self.dtype == "float16":
            raise ValueError("dtype float16 is not for engine torch")
        return self


def with_vllm_args(argv: Sequence[str]) -> list[str]:
    """Moves the flags that are not the verifier's own into --vllm-args, behind those of DSD_VLLM_ARGS.

    Only where the engine is vllm: elsewhere an unknown flag is an error. --model is --target.
    """
    flags = _with_values(argv)
    engine = os.environ.get(f"{ENV_PREFIX}ENGINE", "")
    for name, values in flags:
        engine = values[0] if name == "--engine" and values else engine
    if engine != "vllm":
        return list(argv)
    own: list[str] = []
    foreign = shlex.split(os.environ.get(f"{ENV_PREFIX}VLLM_ARGS", ""))
    for name, values in flags:
        if name == "--vllm-args":
            foreign += shlex.split(" ".join(values))
        elif name in ("", "-h", "--help", "--model") or name[2:].replace("-", "_") in VerifierSettings.model_fields:
            own += [part for part in ("--target" if name == "--model" else name, *values) if part]
        else:
            foreign += [name, *values]
    return [*own, f"--vllm-args={shlex.join(foreign)}"] if foreign else own


def _with_values(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag with its values; "" for values before the first flag. --name=value is split."""
    flags: list[tuple[str, list[str]]] = [("", [])]
    for argument in argv:
        name, equals, value = argument.partition("=")
        if argument == "-h" or (name.startswith("--") and " " not in name):
            flags.append((name, [value] if equals else []))
        else:
            flags[-1][1].append(argument)
    return flags
