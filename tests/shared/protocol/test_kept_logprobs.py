"""Logprobs that a verifier's session keeps: the same values, in little memory."""

from __future__ import annotations

import math
import random
from functools import partial

from shared.protocol.kept_logprobs import KeptLogprobs
from shared.protocol.messages import MAX_TOP_LOGPROBS, NO_TOKENS, Open, Sampling, TokenIds, TokenLogprobs
from shared.protocol.pass_row import PassInfo
from shared.protocol.verifier_session import VerifierSession
from tests.memory import held_bytes


def some_logprobs(rng: random.Random, num_top: int = MAX_TOP_LOGPROBS) -> TokenLogprobs:
    top_ids = TokenIds(rng.randrange(1 << 32) for _ in range(num_top))
    return TokenLogprobs(-rng.expovariate(1), top_ids, [-rng.expovariate(1) for _ in range(num_top)])


def test_logprobs_come_back_as_they_were_one_by_one_and_in_slices() -> None:
    rng = random.Random(2)
    plain = [some_logprobs(rng, rng.choice([0, 1, 5, 20])) for _ in range(50)]
    plain.append(TokenLogprobs(-math.inf, TokenIds((0, (1 << 32) - 1)), [-math.inf, -0.1]))
    kept = KeptLogprobs()
    kept.extend(plain[:20])
    kept.extend(plain[20:])
    assert list(kept) == plain
    assert (len(kept), kept[50]) == (51, plain[50])
    for _ in range(100):
        start, end = rng.randrange(60), rng.randrange(60)
        assert kept[start:end] == plain[start:end]
    assert KeptLogprobs()[0:5] == []


def test_a_session_keeps_20_logprobs_of_a_token_in_less_than_400_bytes() -> None:
    num_tokens, rng = 2000, random.Random(3)
    request = Open(
        "0" * 32, 1, None, TokenIds((5, 6, 7)), NO_TOKENS, Sampling(), NO_TOKENS, num_tokens + 1, logprobs=20
    )

    def generate(state: VerifierSession) -> None:
        for _ in range(num_tokens):
            row = state.begin_pass(64, 0)
            state.end_pass(row, [7], PassInfo(), 1.0, [some_logprobs(rng)])

    unmeasured, measured = (VerifierSession.opened(request, "gw.0123456789ab", now=0.0) for _ in range(2))
    generate(unmeasured)  # fills the free lists of Python
    assert held_bytes(partial(generate, measured)) < 400 * num_tokens
