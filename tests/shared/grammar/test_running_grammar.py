"""What a grammar allows after a text: the same on every way to it, and no more than the grammar."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest
from tokenizers import Tokenizer

from services.gateway.formats import structured
from shared.grammar.grammars import BadGrammar, Grammars
from shared.grammar.running_grammar import RunningGrammar
from shared.protocol.messages import Sampling
from shared.protocol.running_adjustment import RunningAdjustment
from tests.e2e.formats.schemas import SCHEMAS
from tests.gateway.tiny import make_folder

STOP = 2  # <|im_end|>
VOCABULARY = 330  # ten more than the tokenizer has, as padded heads do
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def grammars(folder: Path) -> Grammars:
    return Grammars(folder, VOCABULARY)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def follow(grammars: Grammars, grammar: str) -> RunningGrammar:
    return RunningGrammar(grammars.start(grammar), [STOP], VOCABULARY)


def allowed(running: RunningGrammar) -> list[int]:
    mask = running.allowed
    assert mask is not None
    return [int(token_id) for token_id in np.flatnonzero(mask)]


def walk(running: RunningGrammar, rng: random.Random, most: int = 200) -> list[int]:
    """A text of allowed tokens, drawn evenly, up to its stop id."""
    text: list[int] = []
    while len(text) < most and (not text or text[-1] != STOP):
        text.append(rng.choice(allowed(running)))
        running.extend(text[-1:])
    return text


@pytest.mark.parametrize("seed", range(20))
def test_every_text_of_allowed_tokens_that_ends_is_valid(grammars: Grammars, tokenizer: Tokenizer, seed: int) -> None:
    text = walk(follow(grammars, structured.of_json_schema(PERSON)), random.Random(seed))
    assert text[-1] == STOP
    written = tokenizer.decode(text[:-1], skip_special_tokens=False)
    jsonschema_rs.validate(PERSON, json.loads(written))
    assert written == json.dumps(json.loads(written), ensure_ascii=False) or "\\" in written


@pytest.mark.parametrize("number", range(200))
def test_texts_of_every_schema_are_valid(grammars: Grammars, tokenizer: Tokenizer, number: int) -> None:
    text = walk(follow(grammars, structured.of_json_schema(SCHEMAS[number])), random.Random(number), 2000)
    assert text[-1] == STOP
    answer = json.loads(tokenizer.decode(text[:-1], skip_special_tokens=False))
    jsonschema_rs.validator_for(SCHEMAS[number], validate_formats=True).validate(answer)


@pytest.mark.parametrize("seed", range(10))
def test_a_text_that_is_rolled_back_and_grows_allows_what_it_allows_from_its_beginning(
    grammars: Grammars, seed: int
) -> None:
    rng, grammar = random.Random(seed), structured.of_json_schema(PERSON)
    whole = walk(follow(grammars, grammar), random.Random(seed + 100))
    running, length = follow(grammars, grammar), 0
    for _ in range(60):
        length = min(length, rng.randrange(len(whole)))
        running.roll_back(length)
        if rng.random() < 0.3:
            wrong = rng.randrange(VOCABULARY)
            running.extend([wrong])
            running.roll_back(length)
        end = rng.randrange(length, len(whole))
        running.extend(whole[length:end])
        length = end
        straight = follow(grammars, grammar)
        straight.extend(whole[:length])
        assert allowed(running) == allowed(straight)
        assert running.forced() == straight.forced()


def test_nothing_is_allowed_after_a_text_that_the_grammar_does_not_allow(grammars: Grammars) -> None:
    running = follow(grammars, structured.of_regex("[0-9]{2}"))
    assert STOP not in allowed(running)
    running.extend([STOP])
    running.extend(allowed(follow(grammars, structured.of_regex("[0-9]{2}")))[:1])
    assert running.allowed is None
    assert running.forced() == []
    running.roll_back(0)
    assert STOP not in allowed(running)


def test_only_a_stop_id_follows_a_complete_text_that_can_not_go_on(grammars: Grammars, tokenizer: Tokenizer) -> None:
    running = follow(grammars, structured.of_choice(["stop", "Once"]))
    assert set(allowed(running)) <= {i for i in range(320) if tokenizer.decode([i])[:1] in ("s", "O")}
    running.extend(tokenizer.encode("Once").ids)
    assert allowed(running) == [STOP]


def test_a_text_ends_with_the_request_s_own_stop_ids(grammars: Grammars, tokenizer: Tokenizer) -> None:
    for stop_ids in ([0], [1, 7], []):
        running = RunningGrammar(grammars.start(structured.of_choice(["Once"])), stop_ids, VOCABULARY)
        running.extend(tokenizer.encode("Once").ids)
        assert allowed(running) == stop_ids


def test_forced_tokens_are_the_only_ones_allowed_one_after_the_other(grammars: Grammars, tokenizer: Tokenizer) -> None:
    running = follow(grammars, structured.of_json_schema(PERSON))
    forced = running.forced()
    assert tokenizer.decode(forced).startswith('{"name": "'[: len(tokenizer.decode(forced))])
    assert len(forced) > 1
    for token_id in forced:
        assert allowed(running) == [token_id]
        running.extend([token_id])


def test_scores_outside_the_grammar_are_never_drawn(grammars: Grammars) -> None:
    running = RunningAdjustment(Sampling(presence_penalty=1.0), [5], (STOP,), 0, follow(grammars, "start: /[0-9]/"))
    scores = running.scores(np.zeros(VOCABULARY, np.float32))
    assert np.flatnonzero(np.isfinite(scores)).tolist() == allowed(follow(grammars, "start: /[0-9]/"))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (structured.of_json_schema({"type": "foo"}), "Invalid type: foo"),
        (structured.of_regex("[a"), "invalid regex"),
        ("no grammar", "Expected"),
        ('start: "a"' + " " * (1 << 16), "at most 65536 characters"),
    ],
)
def test_a_grammar_that_does_not_compile_is_refused_with_the_reason(
    grammars: Grammars, grammar: str, reason: str
) -> None:
    with pytest.raises(BadGrammar, match=reason):
        grammars.start(grammar)


def test_without_a_tokenizer_no_grammar_compiles(tmp_path: Path) -> None:
    for none in (Grammars(), Grammars(tmp_path)):
        with pytest.raises(BadGrammar, match=r"no tokenizer\.json"):
            none.start('start: "a"')


def test_a_grammar_whose_masks_would_take_long_fails(grammars: Grammars, tokenizer: Tokenizer) -> None:
    running = follow(grammars, 'start: s\ns: s s s s | "a" | ""')
    with pytest.raises(BadGrammar, match="items"):
        [running.allowed for _ in range(400) if running.extend(tokenizer.encode("a").ids) is None]  # type: ignore[func-returns-value]


@pytest.mark.parametrize("rule", ['a{i}: "y" a{j}', "a{i}: a{j}"])
def test_rules_that_nest_as_deeply_as_a_grammar_can_don_t_exhaust_the_stack(grammars: Grammars, rule: str) -> None:
    lines = ["start: a0"]
    while sum(map(len, lines)) + len(lines) < (1 << 16) - 60:
        lines.append(rule.format(i=len(lines) - 1, j=len(lines)))
    grammar = "\n".join([*lines, f'a{len(lines) - 1}: "x"'])
    assert allowed(follow(grammars, grammar))
