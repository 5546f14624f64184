"""The engine of a local system's verifiers, and the Python that runs them.

Invariant: verifiers alone run with another Python. It has what they need, or nothing starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the checkout, or of the installed packages
MADE = Path(".venv-vllm", "bin", "python")  # by `make vllm`
CHECK_S = 60.0
EVERY_ROLE = (  # pyproject.toml's dependencies of every role, without the optional uvloop
    "aiohttp",
    "msgpack",
    "msgspec",
    "nats",
    "nkeys",
    "prometheus_client",
    "pydantic",
    "pydantic_settings",
    "structlog",
)
LIST_MISSING = "import importlib.util as u, sys; print(*[name for name in sys.argv[1:] if u.find_spec(name) is None])"


class EngineName(StrEnum):
    """An engine of `python -m services.cloud_verifier`."""

    TORCH = "torch"
    VLLM = "vllm"


NEEDS = {
    EngineName.TORCH: ("llvmlite", "numba", "numpy", "torch", "transformers"),
    EngineName.VLLM: ("numpy", "vllm"),
}
READY_S = {EngineName.TORCH: 180.0, EngineName.VLLM: 900.0}  # vLLM compiles a new model first


class EngineRefused(ValueError):
    """No Python can run the engine; the message says what to do."""


@dataclass(frozen=True, slots=True)
class VerifierEngine:
    """How the verifiers run."""

    name: EngineName = EngineName.TORCH
    python: Path = Path(sys.executable)

    @property
    def ready_s(self) -> float:
        """Seconds that a verifier may take to become ready."""
        return READY_S[self.name]

    @property
    def env(self) -> dict[str, str]:
        """Settings of a verifier. Another Python takes the packages of this checkout, whatever is installed there."""
        settings = {"DSD_ENGINE": str(self.name)}
        if self.python != Path(sys.executable) and (ROOT / "pyproject.toml").is_file():
            given = os.environ.get("PYTHONPATH", "")
            settings["PYTHONPATH"] = f"{ROOT}{os.pathsep}{given}" if given else str(ROOT)
        return settings


def verifier_engine(name: EngineName, python: Path | None) -> VerifierEngine:
    """The engine with the given Python, or with the one that has it. Raises EngineRefused."""
    if python is None and name is EngineName.TORCH:
        return VerifierEngine()
    engine = VerifierEngine(name, python.absolute() if python else _made() or Path(sys.executable))
    missing = _missing(engine)
    if "vllm" in missing:
        raise EngineRefused(
            f"--engine vllm needs vLLM, which {engine.python} lacks: run `make vllm`, or name a Python that has it "
            "with --verifier-python"
        )
    if missing:
        extra = "[cloud]" if name is EngineName.TORCH else ""
        raise EngineRefused(
            f"a verifier needs {', '.join(missing)}, which {engine.python} lacks: install DSD there, "
            f"{engine.python} -m pip install '.{extra}'"
        )
    return engine


def _made() -> Path | None:
    """The Python that `make vllm` made, beside this checkout's packages or in the current folder."""
    return next((path for folder in (ROOT, Path.cwd()) if (path := folder / MADE).is_file()), None)


def _missing(engine: VerifierEngine) -> list[str]:
    """Packages that a verifier needs and its Python does not find. Imports none of them."""
    names = (*NEEDS[engine.name], *EVERY_ROLE)
    command = [str(engine.python), "-P", "-c", LIST_MISSING, *names]  # -P: a folder here may have a package's name
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=CHECK_S)
    except OSError as error:
        raise EngineRefused(f"--verifier-python {engine.python} can't be run: {error.strerror}") from error
    except subprocess.SubprocessError as error:
        raise EngineRefused(f"--verifier-python {engine.python} is no Python of version 3.11 or newer") from error
    return done.stdout.split()
