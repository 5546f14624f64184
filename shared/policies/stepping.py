"""Which sessions share the next draft step: a pure policy of the drafter and of DSD-Sim.

A step feeds one token to each of several sessions, or several tokens to one. A session with more than one token to
catch up with takes turns of its own, or joins the others with one token at a time. Of several that have much to read,
such as prompts, one reads to its end before the next begins: the first guesses soon, and the last no later.

Invariant: a step of one session, such as a chunk of a prompt, delays each session that guesses once before such a step
comes again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_ROWS = 16  # sessions of a step; more would delay each of them further and gain little


def turn_of(num_todo: NDArray[np.int64], max_rows: int) -> int:
    """The session that is in the next step, of those that want a guess: the one with the oldest turn that does not
    wait for another to read. That one has the least left to read (shortest remaining time first).

    num_todo: [sessions] tokens up to the end of each text, at least 1, the oldest turn first. Only arrays and numbers,
    so that DSD-Sim can compile these very lines.
    """
    most_todo = (min(len(num_todo), max_rows) + 1) // 2  # with more a session does not join others
    reader = -1
    for i in range(len(num_todo)):
        if num_todo[i] > most_todo and (reader < 0 or num_todo[i] < num_todo[reader]):
            reader = i
    turn = 0
    while num_todo[turn] > most_todo and turn != reader:
        turn += 1
    return turn


def form_step(num_todo: NDArray[np.int64], turn: int, max_rows: int, feed_tokens: int) -> NDArray[np.int64]:
    """Tokens that each session feeds in the next step, which the session `turn` is in; 0: it is not in the step.

    num_todo: as in `turn_of`. A session joins with one token at a time while that takes at most half as many steps as
    sessions are ready. It then costs one row in each of them, and a turn of its own costs the part of a step that rows
    share, about four rows.
    """
    fed = np.zeros_like(num_todo)
    num_ready = min(len(num_todo), max_rows)
    most_todo = (num_ready + 1) // 2
    num_rows = 0
    if num_todo[turn] <= most_todo:
        fed[turn] = num_rows = 1
        for i in range(len(num_todo)):
            if i != turn and num_todo[i] <= most_todo and num_rows < num_ready:
                fed[i] = 1
                num_rows += 1
    if num_rows < 2:
        fed[turn] = min(num_todo[turn], feed_tokens)
    return fed


def guess_ms(num_sessions: int, max_rows: int, alone_ms: float, further_ms: float) -> float:
    """Milliseconds between two guesses of a session while so many draft, but at least one.

    alone_ms: of a step with one session; further_ms: of each further one in the step.
    """
    num = max(num_sessions, 1)
    num_rows = min(num, max_rows)
    return num / num_rows * (alone_ms + further_ms * (num_rows - 1))
