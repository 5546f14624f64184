"""Several choices of one request over HTTP: n, lists of prompts, echo, sources, and what happens when one fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.protocol.messages import Close, Open
from shared.protocol.subjects import to
from tests.gateway.conftest import EOS, TOKENIZER, World, ids_of, until
from tests.gateway.fakes import MODEL, FakeVerifier
from tests.gateway.http.test_http import CHAT, COMPLETIONS, chat, events


def completion(prompt: Any, **options: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, **options}


async def asked(world: World, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await world.client.post(path, json=body)
    assert response.status == 200, await response.text()
    return await response.json()


def seeds_by_session(verifier: FakeVerifier) -> dict[str, int]:
    """A busy gateway may open a session twice."""
    return {opened.session_id: opened.sampling.seed for opened in verifier.of(Open)}


async def test_n_choices_are_n_sessions_whose_seeds_count_up(world: World) -> None:
    verifier, _ = await world.verifier(), await world.drafter()
    verifier.by_seed = {8: [*ids_of("another"), EOS], 9: [*ids_of("the third fox"), EOS]}
    body = await asked(world, CHAT, chat(n=3, seed=7))
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert texts == [world.answer, "another", "the third fox"]
    assert sorted(seeds_by_session(verifier).values()) == [7, 8, 9]
    single = await asked(world, CHAT, chat(seed=8))
    assert single["choices"][0]["message"]["content"] == texts[1]
    assert body["usage"]["prompt_tokens"] == single["usage"]["prompt_tokens"]
    assert body["usage"]["completion_tokens"] == sum(len(ids_of(text)) + 1 for text in texts)
    await world.no_session_is_left()


async def test_the_report_of_several_choices_sums_up_and_has_that_of_each(world: World) -> None:
    await world.verifier()
    await world.drafter("edge")
    body = await asked(world, CHAT, chat(n=2, seed=1))
    dsd, single = body["dsd"], (await asked(world, CHAT, chat(seed=1)))["dsd"]
    assert [each["seed"] for each in dsd["choices"]] == [1, 2]
    assert all(set(each) == set(single) == set(dsd) - {"choices"} for each in dsd["choices"])
    for name in ("num_verdicts", "accepted", "rejected", "late", "discarded"):
        assert dsd[name] == sum(each[name] for each in dsd["choices"])
    assert (dsd["seed"], dsd["speculation"], dsd["drafter"], dsd["verifier"]) == (1, "adaptive", "edge", "verifier")
    assert dsd["ttft_ms"] == min(each["ttft_ms"] for each in dsd["choices"])
    assert body["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] == dsd["accepted"] > 0


async def test_a_seed_beyond_64_bits_goes_on_from_the_least(world: World) -> None:
    verifier = await world.verifier()
    body = await asked(world, CHAT, chat(n=2, seed=(1 << 63) - 1))
    assert [each["seed"] for each in body["dsd"]["choices"]] == [(1 << 63) - 1, -(1 << 63)]
    assert len(verifier.of(Open)) == 2


async def test_streamed_choices_come_interleaved_and_tell_the_same(world: World) -> None:
    verifier, _ = await world.verifier(pass_s=0.01), await world.drafter()
    verifier.by_seed = {5: ids_of("once upon a time, " * 6)}
    options = {"n": 2, "seed": 4, "max_tokens": 30}
    whole = await asked(world, CHAT, chat(**options))
    streamed = chat(stream=True, stream_options={"include_usage": True}, **options)
    chunks = await events(await world.client.post(CHAT, json=streamed))
    *choice_chunks, last = chunks
    assert [chunk["choices"][0]["delta"].get("role") for chunk in choice_chunks[:3]] == ["assistant", "assistant", None]
    for choice in whole["choices"]:
        own = [chunk for chunk in choice_chunks if chunk["choices"][0]["index"] == choice["index"]]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in own)
        assert text == choice["message"]["content"]
        assert own[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
        assert own[-1]["dsd"]["seed"] == 4 + choice["index"]
        assert not any("dsd" in chunk for chunk in own[:-1])
    order = [chunk["choices"][0]["index"] for chunk in choice_chunks]
    assert order != sorted(order)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert last["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


@pytest.mark.parametrize("prompts", [["once", "upon a time"], [[260, 261], [262]]])
async def test_several_prompts_are_answered_in_their_order(world: World, prompts: list[Any]) -> None:
    verifier = await world.verifier()
    body = await asked(world, COMPLETIONS, completion(prompts, n=2, seed=5, max_tokens=4))
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [each["seed"] for each in body["dsd"]["choices"]] == [5, 6, 5, 6]
    first, second = [tuple(ids_of(prompt) if isinstance(prompt, str) else prompt) for prompt in prompts]
    assert sorted(tuple(opened.prompt_ids) for opened in verifier.of(Open)) == sorted([first, first, second, second])
    assert body["usage"]["prompt_tokens"] == len(first) + len(second)
    assert body["usage"]["completion_tokens"] == 16


async def test_without_a_seed_no_two_choices_of_a_request_share_one(world: World) -> None:
    verifier = await world.verifier()
    body = await asked(world, COMPLETIONS, completion(["once", "once", "upon"], n=2, max_tokens=4))
    first = body["dsd"]["seed"]
    assert [each["seed"] for each in body["dsd"]["choices"]] == [first + i for i in range(6)]
    assert sorted(seeds_by_session(verifier).values()) == [first + i for i in range(6)]
    again = await asked(world, COMPLETIONS, completion("once", seed=first + 3, max_tokens=4))
    assert again["choices"][0]["text"] == body["choices"][3]["text"]


@pytest.mark.parametrize("prompt", ["once upon", ids_of("once upon")])
async def test_echo_puts_the_prompt_before_the_answer(world: World, prompt: Any) -> None:
    await world.verifier()
    whole = await asked(world, COMPLETIONS, completion(prompt, echo=True))
    assert whole["choices"][0]["text"] == "once upon" + world.answer
    assert whole["usage"]["completion_tokens"] == len(ids_of(world.answer)) + 1
    chunks = await events(await world.client.post(COMPLETIONS, json=completion(prompt, echo=True, stream=True)))
    assert chunks[0]["choices"][0]["text"] == "once upon"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "once upon" + world.answer


async def test_an_echoed_prompt_is_not_searched_for_stop_strings(world: World) -> None:
    await world.verifier()
    body = await asked(world, COMPLETIONS, completion("a quick one", echo=True, stop="quick"))
    assert body["choices"][0]["text"] == "a quick one" + world.answer.partition("quick")[0]


async def test_when_one_choice_fails_all_are_closed_and_one_error_is_told(world: World) -> None:
    verifier = await world.verifier(pass_s=0.01)
    world.answer = "hello world " * 30
    verifier.refused_seeds = {2}
    for stream in (False, True):
        response = await world.client.post(CHAT, json=chat(n=3, seed=1, stream=stream))
        assert response.status == 500
        assert (await response.json())["error"]["code"] == "internal"
        await world.no_session_is_left()
    assert len({closed.session_id for closed in verifier.of(Close)}) == 6


async def test_a_stream_of_several_choices_that_breaks_off_tells_one_error_and_closes_all(world: World) -> None:
    await world.verifier(pass_s=0.02)
    world.answer = "hello world " * 40
    response = await world.client.post(CHAT, json=chat(n=3, stream=True))
    await response.content.readuntil(b"\n\n")
    next(iter(world.gateway.sessions._live.values())).session.abort("broken by the test")
    rest = (await response.content.read()).decode().split("\n\n")
    errors = [event for event in rest if '"error"' in event]
    assert len(errors) == 1
    assert "broken by the test" in errors[0]
    assert rest[-2:] == ["data: [DONE]", ""]
    await world.no_session_is_left()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_choice_that_hit_its_stop_string_is_closed_while_the_others_go_on(world: World, stream: bool) -> None:
    verifier, drafter = await world.verifier(pass_s=0.01), await world.drafter()
    verifier.by_seed = {7: ids_of("here it stops " * 30), 8: ids_of("on and on it goes " * 30)}
    asking = asyncio.create_task(world.client.post(CHAT, json=chat(n=2, seed=7, stop="stop", stream=stream)))
    await until(lambda: len(verifier.sessions) == 2)
    await until(lambda: len(verifier.sessions) < 2)
    (left,) = verifier.sessions.values()
    assert (left.request.sampling.seed, left.finish, verifier.num_cut_short) == (8, None, 1)
    await until(lambda: len(drafter.sessions) == len(world.gateway.sessions) == 1)
    next(iter(world.gateway.sessions._live.values())).session.abort("the test has seen enough")
    await asking
    await world.no_session_is_left()


async def test_a_stopped_choice_whose_close_was_lost_is_closed_when_it_speaks_again(world: World) -> None:
    verifier = await world.verifier(pass_s=0.01)
    verifier.by_seed = {7: ids_of("here it stops " * 30), 8: ids_of("on and on it goes " * 30)}
    closes = to("verifier", verifier.instance_id, Close, world.gateway.sessions.instance_id)
    world.network.cut(closes)
    response = await world.client.post(CHAT, json=chat(n=2, seed=7, stop="stop", stream=True))
    await until(lambda: len(world.gateway.sessions) == 1)
    assert len(verifier.sessions) == 2
    world.network.mend(closes)
    await until(lambda: len(verifier.sessions) == 1)
    assert len(world.gateway.sessions) == 1, "the other goes on"
    response.close()
    await world.no_session_is_left()


async def test_accepted_guesses_behind_a_stop_string_are_never_more_than_there_are_tokens(world: World) -> None:
    await world.verifier(pass_s=0.05)  # the guesses behind the first token come before the next pass
    await world.drafter()
    second = TOKENIZER.decode(ids_of(world.answer)[1:2])
    body = await asked(world, CHAT, chat(stop=second))
    usage = body["usage"]
    assert usage["completion_tokens"] == 2
    assert body["dsd"]["accepted"] == 3
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] == 2


async def test_every_chunk_with_text_tells_the_sources_of_its_tokens_where_asked(world: World) -> None:
    await world.verifier()
    await world.drafter()
    body = chat(stream=True, stop="brown", dsd={"sources": True, "speculation": "static", "window": 4})
    chunks = await events(await world.client.post(CHAT, json=body))
    *pieces, last = chunks
    sources = set()
    for chunk in pieces:
        text = chunk["choices"][0]["delta"]["content"]
        told = chunk.get("dsd", {"pieces": []})["pieces"]
        assert "".join(piece["text"] for piece in told) == text
        sources |= {piece["source"] for piece in told}
    assert {"accepted"} < sources <= {"accepted", "recovered", "bonus", "target"}
    assert last["dsd"]["accepted"] > 0
    plain = await events(await world.client.post(CHAT, json=chat(stream=True)))
    assert not any("dsd" in chunk for chunk in plain[:-1])


async def test_options_of_sampling_reach_the_verifier(world: World) -> None:
    verifier, drafter = await world.verifier(), await world.drafter()
    options = {
        "presence_penalty": 0.5,
        "frequency_penalty": -1,
        "repetition_penalty": 1.5,
        "logit_bias": {"300": -100, "7": 2.5},
        "min_tokens": 3,
        "stop_token_ids": [9, 2],
        "best_of": 1,
    }
    await asked(world, CHAT, chat(max_tokens=40, **options))
    (opened,) = verifier.of(Open)
    sampling = opened.sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -1.0, 1.5)
    assert [(bias.token_id, bias.bias) for bias in sampling.logit_bias] == [(7, 2.5), (300, -100.0)]
    assert (opened.min_tokens, tuple(opened.stop_ids), opened.logprobs) == (3, (2, 9), None)
    await asked(world, CHAT, chat(ignore_eos=True, max_tokens=4))
    assert tuple(verifier.of(Open)[1].stop_ids) == ()
    assert drafter.heard


async def test_a_stop_string_within_min_tokens_is_not_one(world: World) -> None:
    await world.verifier()
    num_tokens = len(ids_of(world.answer[: world.answer.index("quick") + 5]))
    body = await asked(world, CHAT, chat(stop="quick", min_tokens=num_tokens, max_tokens=60))
    assert body["choices"][0]["message"]["content"] == world.answer
    body = await asked(world, CHAT, chat(stop="quick", min_tokens=num_tokens - 1, max_tokens=60))
    assert body["choices"][0]["message"]["content"] == world.answer[: world.answer.index("quick")]
