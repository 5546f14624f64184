"""`echo` with `logprobs`: the logprobs of a prompt's tokens, as lm-evaluation-harness asks for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.gateway.session import verdict_stream
from services.gateway.text.echoed_prompt import EchoedPrompt
from services.gateway.text.token_bytes import TokenBytes
from shared.protocol import verifier_session
from shared.protocol.messages import Message, Open, Poll, Service, Speculate, Verdict
from tests.gateway.conftest import EOS, TOKENIZER, World, ids_of, until
from tests.gateway.fakes import MODEL, logprobs_of
from tests.gateway.http.test_http import COMPLETIONS, events
from tests.gateway.tiny import make_byte_fallback

TEXT = "Once upon a time <|im_end|> café 😀 there"
IDS = ids_of(TEXT)


def harness(prompt: Any = TEXT, **options: Any) -> dict[str, Any]:
    """What lm-evaluation-harness sends."""
    asked = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}
    return {**asked, "echo": True, **options}


async def whole(world: World, asked: dict[str, Any]) -> dict[str, Any]:
    response = await world.client.post(COMPLETIONS, json=asked)
    assert response.status == 200, await response.text()
    return await response.json()


def check(choice: dict[str, Any], ids: list[int]) -> None:
    """The choice has the scores of these tokens, and each token begins at its offset."""
    told = choice["logprobs"]
    assert told["token_logprobs"] == [None, *(logprobs_of(token_id, 1).logprob for token_id in ids[1:])]
    assert told["top_logprobs"][0] is None
    assert [max(top.values()) for top in told["top_logprobs"][1:]] == told["token_logprobs"][1:]
    assert len(told["tokens"]) == len(told["text_offset"]) == len(ids)
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        is_hidden = token.startswith("bytes:") or token in ("<|im_end|>", "<|im_start|>")
        assert is_hidden or choice["text"].startswith(token, offset), (token, offset)


@pytest.mark.parametrize("prompt", [TEXT, IDS, [IDS]])
async def test_prompt_and_answer_have_logprobs_in_one_list(world: World, prompt: Any) -> None:
    verifier = await world.verifier()
    body = await whole(world, harness(prompt))
    (choice,) = body["choices"]
    shown = TEXT if prompt == TEXT else TOKENIZER.decode(IDS)
    assert choice["text"] == shown + TOKENIZER.decode(ids_of(world.answer)[:1])
    check(choice, [*IDS, ids_of(world.answer)[0]])
    assert choice["logprobs"]["text_offset"][-1] == len(shown)
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (len(IDS), 1)
    (opened,) = verifier.of(Open)
    assert (opened.prompt_logprobs, opened.max_tokens, list(opened.prompt_ids)) == (True, 1, IDS)
    await world.no_session_is_left()


async def test_a_special_token_in_a_text_is_at_its_place(world: World) -> None:
    await world.verifier()
    (choice,) = (await whole(world, harness()))["choices"]
    place = choice["logprobs"]["tokens"].index("<|im_end|>")
    assert choice["logprobs"]["text_offset"][place] == TEXT.index("<|im_end|>")
    assert "".join(choice["logprobs"]["tokens"][: place + 1]) == TEXT[: TEXT.index("|>") + 2]


@pytest.mark.parametrize("logprobs", [None, 0, 2])
async def test_no_token_but_the_prompt_s_is_told_for_max_tokens_0(world: World, logprobs: int | None) -> None:
    verifier = await world.verifier()
    world.answer = ""  # the end of sequence is drawn at once
    body = await whole(world, harness(max_tokens=0, logprobs=logprobs))
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"], body["usage"]["completion_tokens"]) == (TEXT, "length", 0)
    assert (choice["logprobs"] is None) == (logprobs is None)
    if logprobs == 0:
        check(choice, IDS)
    (opened,) = verifier.of(Open)
    assert opened.max_tokens == 1
    await world.no_session_is_left()


async def test_a_prompt_of_one_token_has_a_null(world: World) -> None:
    await world.verifier()
    (choice,) = (await whole(world, harness([IDS[0]], max_tokens=0)))["choices"]
    assert (choice["logprobs"]["token_logprobs"], choice["logprobs"]["text_offset"]) == ([None], [0])


async def test_a_stream_tells_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (verdict_stream, verifier_session):
        monkeypatch.setattr(module, "MAX_TOLD_WITH_LOGPROBS", 8)
    verifier, _ = await world.verifier(), await world.drafter()
    for options in ({"max_tokens": 20}, {"max_tokens": 0}, {"max_tokens": 30, "stop": "quick"}, {"n": 2}):
        body = await whole(world, harness(**options))
        chunks = await events(await world.client.post(COMPLETIONS, json=harness(stream=True, **options)))
        for choice in body["choices"]:
            own = [each["choices"][0] for each in chunks if each["choices"][0]["index"] == choice["index"]]
            assert "".join(each["text"] for each in own) == choice["text"]
            for name, values in choice["logprobs"].items():
                assert [value for each in own if each["logprobs"] for value in each["logprobs"][name]] == values
        assert len(body["choices"][0]["logprobs"]["tokens"]) == len(IDS) + body["usage"]["completion_tokens"] // len(
            body["choices"]
        )
    assert len(chunks) > 6, "a page of logprobs makes a chunk"
    assert verifier.of(Poll), "it is polled for the rest"
    assert not any(order.prompt_ids != tuple(IDS) for order in world.peers[1].of(Speculate))


async def test_a_scored_prompt_outlives_its_verifier(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (verdict_stream, verifier_session):
        monkeypatch.setattr(module, "MAX_TOLD_WITH_LOGPROBS", 4)
    first = await world.verifier("first")
    expected = (await whole(world, harness(max_tokens=12)))["choices"]
    told = first.say

    async def say_a_little(service: Service, receiver: str, message: Message) -> None:
        """It falls silent when the prompt is known in part."""
        first.mute = first.mute or (isinstance(message, Verdict) and message.base > 8)
        if not first.mute:
            await told(service, receiver, message)

    monkeypatch.setattr(first, "say", say_a_little)
    asking = asyncio.create_task(whole(world, harness(max_tokens=12)))
    await until(lambda: first.mute)
    second = await world.verifier("second")
    first.refuses = "draining"
    await first.kill()
    body = await asking
    assert (body["choices"], body["dsd"]["verifier"]) == (expected, "second")
    assert {order.committed_ids for order in second.of(Open)} == {()}, "none of its answer was told"


async def test_without_both_no_prompt_is_scored(world: World) -> None:
    verifier = await world.verifier()
    for options in ({"echo": False}, {"logprobs": None}):
        await whole(world, harness(**options))
    assert [opened.prompt_logprobs for opened in verifier.of(Open)] == [False, False]


async def test_a_verifier_that_scores_no_prompts_refuses_with_a_400(world: World) -> None:
    verifier = await world.verifier()
    verifier.refuses, verifier.refuses_finally = "bad_request", True
    response = await world.client.post(COMPLETIONS, json=harness())
    assert (response.status, (await response.json())["error"]["code"]) == (400, "bad_request")


def test_a_word_behind_a_marked_space_begins_the_text_without_it() -> None:
    tokenizer = make_byte_fallback()
    ids = [tokenizer.token_to_id(piece) for piece in ("▁day", "hi", "</s>", "▁day", "<0xC3>", "<0xA9>", "hi")]
    text = tokenizer.decode(ids)
    echo = EchoedPrompt(TokenBytes(tokenizer), ids, text, is_scored=True)
    scored = [logprobs_of(token_id, 1) for token_id in ids[1:]]
    pieces = [echo.begin(), *(echo.feed([_committed(each)]) for each in scored)]
    assert "".join(piece.text for piece in pieces) == text == "dayhi dayéhi"
    assert [token.offset for piece in pieces for token in piece.tokens] == [0, 3, 5, 5, 9, 9, 10]


def _committed(logprobs: Any) -> verdict_stream.Committed:
    return verdict_stream.Committed(EOS, "target", logprobs)
