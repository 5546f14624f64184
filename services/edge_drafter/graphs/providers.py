"""The execution providers of ONNX Runtime that may compute a draft's graph, by short names.

Invariant: names and options are checked without ONNX Runtime, so a setting is refused before anything loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CPU = "CPU"
_SUFFIX = "ExecutionProvider"


@dataclass(frozen=True, slots=True)
class Provider:
    """ONNX Runtime's name of a provider, without its suffix, and the package that has it."""

    ort_name: str
    package: str


KNOWN = {
    CPU: Provider("CPU", "onnxruntime"),
    "OpenVINO": Provider("OpenVINO", "onnxruntime-openvino"),
    "CUDA": Provider("CUDA", "onnxruntime-gpu"),
    "TensorRT": Provider("Tensorrt", "onnxruntime-gpu"),
    "CoreML": Provider("CoreML", "onnxruntime for macOS"),
    "QNN": Provider("QNN", "onnxruntime-qnn"),
    "DirectML": Provider("Dml", "onnxruntime-directml"),
}
_SHORT = {provider.ort_name: name for name, provider in KNOWN.items()}


def full_name(name: str) -> str:
    """ONNX Runtime's name of a known provider."""
    return KNOWN[name].ort_name + _SUFFIX


def short_name(full: str) -> str:
    """Our name of a provider of ONNX Runtime."""
    name = full.removesuffix(_SUFFIX)
    return _SHORT.get(name, name)


@dataclass(frozen=True, slots=True)
class Providers:
    """Known providers in order of preference, and ONNX Runtime's options of each.

    A node runs on the first that takes it. Without the CPU among them, each node must be taken by one of them.
    """

    names: tuple[str, ...] = (CPU,)
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for unknown or repeated names, and for options of a provider that is not among them."""
        for name in (*self.names, *self.options):
            if name not in KNOWN:
                raise ValueError(f"unknown provider {name!r}; known: {', '.join(KNOWN)}")
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError("each provider must be named once, and one at least")
        if unused := self.options.keys() - set(self.names):
            raise ValueError(f"options for {', '.join(sorted(unused))}, which is not among the providers")

    @classmethod
    def parse(cls, names: str, options: Mapping[str, Mapping[str, str]]) -> Providers:
        """names: separated by commas."""
        return cls(tuple(name.strip() for name in names.split(",")), options)
