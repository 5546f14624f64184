"""What a drafter's guesses are worth with and without the grammar of the answer.

Invariant: both are judged at the same positions of the same greedy answers, those where the grammar leaves a choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from services.edge_drafter.model import load_draft
from shared.grammar.grammars import Grammars
from shared.grammar.running_grammar import RunningGrammar
from shared.protocol.messages import TokenIds


def acceptance_with_and_without(
    models: Path, draft: str, grammar: str, stop_ids: TokenIds, answers: Sequence[tuple[TokenIds, TokenIds]]
) -> tuple[float, float]:
    """Shares of guesses that are the answer's own token. answers: prompt and answer each."""
    model = load_draft(str(models / f"draft-{draft}"), num_threads=1)
    grammars, fates = Grammars(models / "target", model.vocab_size), []
    for prompt_ids, answer_ids in answers:
        running = RunningGrammar(grammars.start(grammar), stop_ids, model.vocab_size)
        cache = model.new_cache(len(prompt_ids) + len(answer_ids))
        logits = model.feed(cache, prompt_ids, 0)
        for number, token_id in enumerate(answer_ids):
            allowed = running.allowed
            if allowed is None or not allowed[token_id]:
                break  # the text was cut into other tokens than the answer
            if allowed.sum() > 1:
                masked = np.where(allowed[: len(logits)], logits, -np.inf)
                fates.append((int(masked.argmax()) == token_id, int(logits.argmax()) == token_id))
            running.extend([token_id])
            logits = model.feed(cache, [token_id], len(prompt_ids) + number)
    with_grammar, without = np.mean(fates, axis=0)
    return float(with_grammar), float(without)
