"""The compiler of grammars for a target's tokenizer."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from transformers.utils.hub import cached_file

from shared.grammar.grammars import TOKENIZER, Grammars


@cache
def load_grammars(target: str, vocab_size: int) -> Grammars:
    """One for each target of a process: what its service has compiled, its engine need not.

    target: a folder, or a hub id whose files are in transformers' cache. Without a tokenizer.json no grammar compiles.
    """
    if Path(target).is_dir():
        return Grammars(Path(target), vocab_size)
    found = cached_file(target, TOKENIZER, _raise_exceptions_for_missing_entries=False)
    return Grammars(None if found is None else Path(found).parent, vocab_size)
