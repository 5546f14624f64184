"""A recording of made-up texts, and a profile with negligible times."""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.harness.prompts import encode_prompts
from services.gateway.text.tokenizer import TargetTokenizer
from shared.data.profiles import PassTimes, Profile, StepTimes
from shared.data.recording import Header, Recorded, Recording

VOCABULARY = 200
NUM_TOKENS = 48
QUICK = Profile(
    name="quick", origin="made up", verifier=PassTimes(base_ms=2.0), drafter=StepTimes(step_ms=0.3, fed_ms=0.01)
)


def recording(acceptance: float, num_prompts: int = 3, seed: int = 1) -> Recording:
    """Prompts of different lengths; the third begins with the second."""
    generator = random.Random(seed)
    lengths = [20 + 5 * number for number in range(num_prompts)]
    prompts = [tuple(generator.randrange(1, VOCABULARY) for _ in range(length)) for length in lengths]
    if num_prompts > 2:
        prompts[2] = (*prompts[1], *prompts[2][len(prompts[1]) :])
    header = Header(target="t", draft="d", vocab_size=VOCABULARY, max_context=512, origin="made up")
    return Recording(header, tuple(_recorded(prompt, acceptance, generator) for prompt in prompts))


def _recorded(prompt: tuple[int, ...], acceptance: float, generator: random.Random) -> Recorded:
    positions = range(NUM_TOKENS)
    return Recorded(
        prompt,
        tuple(generator.randrange(1, VOCABULARY) for _ in positions),
        tuple(generator.random() < acceptance for _ in positions),
        tuple(generator.uniform(0.05, 1) for _ in positions),
    )


def recorded_answers(tokenizer: TargetTokenizer, prompts: Sequence[str], num_tokens: int) -> Recording:
    """The same made-up answer to every prompt; the draft guesses four of five tokens."""
    words = tuple(tokenizer.encode_text(" one two three four five six seven eight nine ten" * 5)[:num_tokens])
    rights = tuple(index % 5 != 4 for index in range(num_tokens))
    header = Header(target="t", draft="d", vocab_size=tokenizer.vocab_size, max_context=2048, origin="made up")
    chats = encode_prompts(tokenizer, prompts)
    return Recording(header, tuple(Recorded(tuple(ids), words, rights, (0.9,) * num_tokens) for ids in chats))


def profile_json(profile: Profile) -> bytes:
    return profile.model_dump_json().encode()
