"""How much of a long text a draft reads: a pure policy of the drafter, of gateways and of DSD-Sim."""

from __future__ import annotations

FIRST_READ = 64  # tokens at the start of a long text: often the task, and always the attention sinks
LAST_READ = 512  # tokens at its end, at least
READ_MS = 1000.0  # a text that takes longer to read is long


def num_left_out(num_todo: int, token_ms: float) -> int:
    """Tokens that a draft does not read of `num_todo`, at `token_ms` each (0: not known).

    A draft that reads the first and last tokens alone (StreamingLLM, arXiv 2309.17453) guesses worse, a copy of the
    target more so than a small draft, but begins sooner. Only numbers, so that DSD-Sim can compile these very lines.
    """
    if num_todo * token_ms <= READ_MS:
        return 0
    return max(0, num_todo - max(FIRST_READ + LAST_READ, int(READ_MS / token_ms)))


def reading_ms(num_todo: int, token_ms: float) -> float:
    """Until a draft has read what it does not leave out."""
    return token_ms * (num_todo - num_left_out(num_todo, token_ms))
