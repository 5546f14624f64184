"""Records of the counting form of a session: its drafter's side, its verifier's side, and their messages.

The counting form has no text. A guess is right or wrong, and all guesses behind a wrong one are wrong, so the position
of the first wrong guess (`wrong`, or NEVER) describes a row of guesses. All else is positions and counts. Times are
milliseconds.
"""

from __future__ import annotations

import numpy as np

from shared.protocol.lookup import LONGEST_MATCH

NEVER = 1 << 30  # a position that no text reaches
FATES = ("drafted", "accepted", "rejected", "late", "discarded")  # counts of guesses

DRAFTER = np.dtype(
    [
        ("length", np.int32),  # of prompt, committed tokens and guesses
        ("wrong", np.int32),  # position of the first wrong guess
        ("committed", np.int32),
        ("computed", np.int32),  # KV entries, and tokens left out
        ("left_out", np.int32),  # tokens of a long text that the draft does not read
        ("sent", np.int32),
        ("stop", np.int32),  # length at which the target's text ends
        ("limit", np.int32),  # length at which max_tokens is reached
        ("window", np.int32),
        ("chunk", np.int32),
        ("epoch", np.int32),
        ("step_start", np.int32),  # of the draft step in flight
        ("step_fed", np.int32),
        ("valid", np.int32),
        ("polled_at", np.int32),
        ("tries", np.int32),
        ("in_step", np.bool_),
        ("free_run", np.bool_),
        ("closed", np.bool_),
        ("poll_due", np.bool_),
        *((fate, np.int64) for fate in FATES),
        ("confidence", np.float64),  # of the newest guess
        ("min_confidence", np.float64),
        ("quiet_since", np.float64),
        ("polled_ms", np.float64),
        ("pass_ms", np.float64),
        ("rtt_ms", np.float64),  # below 0 before the first sample
        ("rtt_deviation_ms", np.float64),
    ],
    align=True,
)

VERIFIER = np.dtype(
    [
        ("length", np.int32),  # committed tokens, prompt included
        ("computed", np.int32),
        ("stop", np.int32),
        ("limit", np.int32),
        ("epoch", np.int32),
        ("pending", np.int32),  # number of guesses, the first one for position pending_base
        ("pending_base", np.int32),
        ("pending_wrong", np.int32),
        ("received", np.int32),
        ("holes", np.int64),
        ("judged", np.int32),
        ("row_start", np.int32),  # of the pass in flight
        ("row_fed", np.int32),
        ("row_draws", np.int32),
        ("row_base", np.int32),
        ("row_guesses", np.int32),
        ("row_wrong", np.int32),
        ("row_epoch", np.int32),
        ("own", np.int32),  # guesses of its own for the next pass, behind the pending ones
        ("own_wrong", np.int32),  # position of the first wrong one
        ("own_match", np.int32),  # equal tokens before them, as in shared.protocol.lookup
        ("row_own", np.int32),
        ("row_own_wrong", np.int32),
        ("row_own_match", np.int32),
        ("looked_up", np.int32),  # right guesses of its own
        ("own_right", np.float64, (LONGEST_MATCH + 1,)),  # of shared.protocol.lookup.LookupChances
        ("own_seen", np.float64, (LONGEST_MATCH + 1,)),
        ("passes", np.int32),
        ("in_pass", np.bool_),
        ("free_run", np.bool_),
        ("has_drafter", np.bool_),
        ("finished", np.bool_),
        *((fate, np.int64) for fate in FATES[1:]),
        ("recovered", np.int32),
        ("bonus", np.int32),
        ("matches", np.float64),  # of shared.protocol.guesses.Survival
        ("comparisons", np.float64),
        ("opened_at", np.float64),
        ("waits_since", np.float64),  # below 0: not waiting for guesses
        ("waited_ms", np.float64),
        ("most_waited_ms", np.float64),
        ("echo_at", np.float64),
        ("sent_ms", np.float64),  # below 0 before the first draft
        ("info_ms", np.float64),  # of the newest pass: duration, queue utilisation, sessions, tokens fed
        ("info_queue", np.float64),
        ("info_batch", np.int32),
        ("info_tokens", np.int32),
    ],
    align=True,
)

MESSAGE = np.dtype(
    [  # a Draft (`num` guesses) or a Verdict (`num` committed tokens)
        ("session", np.int32),
        ("epoch", np.int32),
        ("base", np.int32),
        ("num", np.int32),
        ("wrong", np.int32),
        ("accepted", np.int32),
        ("batch", np.int32),
        ("pass_tokens", np.int32),
        ("free_run", np.bool_),
        ("finish", np.bool_),
        ("sent_ms", np.float64),  # of a Verdict: echo of the newest Draft's; below 0 without one
        ("hold_ms", np.float64),
        ("compute_ms", np.float64),
        ("queue", np.float64),
    ],
    align=True,
)
