"""Grammars that answers must obey, compiled by llguidance for one tokenizer.

A grammar is a text in llguidance's Lark syntax. It may come from anyone, so it is bounded: in length, in the library's
own limits of work and memory, and it is compiled on a stack that no grammar of this length exhausts. Rules that nest
deeply exhaust the default stack of a thread, which ends the process.

Invariant: what a grammar allows after a text depends on grammar, tokenizer and text alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from shared.protocol.messages import MAX_GRAMMAR_CHARACTERS

STACK_BYTES = 512 << 20  # of addresses; memory is taken as it is used
MAX_COMPILED = 64  # grammars that are kept
MAX_REASON_CHARACTERS = 300
TOKENIZER = "tokenizer.json"


class BadGrammar(ValueError):
    """A grammar can't be compiled. The message is the library's reason."""


@dataclass(frozen=True, slots=True)
class Started:
    """A grammar at the beginning of a text. end_ids: with which the library lets a text end."""

    matcher: LLMatcher
    end_ids: Sequence[int]


class Grammars:
    """Compiles grammars for the tokenizer in a model's folder, and keeps those used last.

    folder None: no grammar compiles. vocab_size: of the model's logits; 0: of the tokenizer. May be used from any
    thread. The tokenizer is read for the first grammar.
    """

    def __init__(self, folder: Path | None = None, vocab_size: int = 0) -> None:
        self._path = None if folder is None else folder / TOKENIZER
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._executor: ThreadPoolExecutor | None = None

    def has(self, grammar: str) -> bool:
        """Whether `start` takes no time."""
        return grammar in self._compiled

    def start(self, grammar: str) -> Started:
        """Compiles a grammar that is not kept, while others can be started. Raises BadGrammar."""
        compiled = self._compiled.get(grammar) or self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = compiled
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            assert self._tokenizer is not None
            return Started(compiled.deep_copy(), self._tokenizer.eos_tokens)

    def _compile(self, grammar: str) -> LLMatcher:
        if len(grammar) > MAX_GRAMMAR_CHARACTERS:
            raise BadGrammar(f"a grammar must have at most {MAX_GRAMMAR_CHARACTERS} characters, got {len(grammar)}")
        if self._path is None or not self._path.is_file():
            raise BadGrammar(f"the model has no {TOKENIZER}, which grammars need")
        with self._lock:
            if self._executor is None:
                self._executor = _on_a_large_stack()
        return self._executor.submit(self._compile_there, grammar).result()

    def _compile_there(self, grammar: str) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(str(self._path), n_vocab=self._vocab_size or None)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_limits())
        first = matcher.deep_copy()
        first.compute_bitmask()  # a grammar beyond the limits fails here already, if not before
        for each in (matcher, first):
            if each.is_error():
                raise BadGrammar(_reason(each.get_error()))
        return matcher


def _limits() -> LLParserLimits:
    """Below the defaults, since the sessions of a pass wait for each mask."""
    return LLParserLimits(max_items_in_row=500, step_max_items=2000, verbose_errors=False)


def _on_a_large_stack() -> ThreadPoolExecutor:
    """One thread with a stack of STACK_BYTES. A thread that others begin at the same moment may get one too."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="grammar")
    before = threading.stack_size(STACK_BYTES)
    try:
        executor.submit(int).result()  # begins the thread
    finally:
        threading.stack_size(before)
    return executor


def _reason(error: str) -> str:
    """The library's first line, without the grammar that it repeats."""
    first = error.strip().split("\n", 1)[0]
    return first if len(first) <= MAX_REASON_CHARACTERS else f"{first[:MAX_REASON_CHARACTERS]}…"
