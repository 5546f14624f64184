"""The clients that people have, unchanged, against a whole system: openai, LangChain, curl as docs/api.md has it."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from services.gateway.text.tokenizer import TargetTokenizer
from tests.e2e.processes import MODEL, Processes, processes

pytestmark = pytest.mark.asyncio(loop_scope="module")

API = Path(__file__).parents[2] / "docs" / "api.md"
ADDRESS = "http://127.0.0.1:8080"
QUESTION = "What is the capital of France?"
ASKED = [{"role": "user", "content": QUESTION}]
SAMPLED = {"model": MODEL, "messages": ASKED, "max_tokens": 24, "temperature": 0.9}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(default_models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Processes]:
    async with processes(default_models, tmp_path_factory.mktemp("clients"), ("int8",), num_verifiers=1) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(system: Processes) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{system.system.plan.address}/v1", api_key="none", max_retries=0) as made:
        yield made


# --- openai -----------------------------------------------------------------------------------------------------------


async def test_a_seed_gives_its_text_again_whole_streamed_and_with_speculation_off(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**SAMPLED, seed=11)
    assert whole.usage is not None
    text = whole.choices[0].message.content
    off = await client.chat.completions.create(**SAMPLED, seed=11, extra_body={"dsd": {"speculation": "off"}})
    assert off.choices[0].message.content == text
    stream = await client.chat.completions.create(
        **SAMPLED, seed=11, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    other = await client.chat.completions.create(**SAMPLED, seed=12)
    assert other.choices[0].message.content != text


async def test_n_choices_are_the_texts_of_their_seeds(client: openai.AsyncOpenAI) -> None:
    together = await client.chat.completions.create(**SAMPLED, seed=20, n=3)
    alone = [await client.chat.completions.create(**SAMPLED, seed=20 + i) for i in range(3)]
    assert [choice.message.content for choice in together.choices] == [
        answer.choices[0].message.content for answer in alone
    ]
    assert together.usage is not None
    assert together.usage.completion_tokens == sum(answer.usage.completion_tokens for answer in alone if answer.usage)


async def test_completion_with_a_stop_string_echo_and_several_prompts(client: openai.AsyncOpenAI) -> None:
    plain = await client.completions.create(model=MODEL, prompt="1, 2, 3, 4,", max_tokens=16, temperature=0)
    text = plain.choices[0].text
    assert "5," in text
    stopped = await client.completions.create(
        model=MODEL, prompt="1, 2, 3, 4,", max_tokens=16, temperature=0, stop=[" 7"]
    )
    assert stopped.choices[0].text == text.partition(" 7")[0]
    assert stopped.choices[0].finish_reason == "stop"
    several = await client.completions.create(
        model=MODEL, prompt=["1, 2, 3, 4,", "Hello"], max_tokens=16, temperature=0, echo=True
    )
    assert several.choices[0].text == "1, 2, 3, 4," + text
    assert several.choices[1].text.startswith("Hello")


async def test_logprobs_of_a_greedy_answer_have_the_chosen_token_first(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=24, temperature=0, logprobs=True, top_logprobs=3
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert answer.usage is not None
    assert len(choice.logprobs.content) == answer.usage.completion_tokens
    assert b"".join(bytes(token.bytes or []) for token in choice.logprobs.content).decode() == choice.message.content
    for token in choice.logprobs.content:
        assert token.logprob <= 0
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
        assert [each.logprob for each in token.top_logprobs] == sorted(
            (each.logprob for each in token.top_logprobs), reverse=True
        )
    older = await client.completions.create(model=MODEL, prompt="Hello", max_tokens=4, temperature=0, logprobs=2)
    assert older.choices[0].logprobs is not None
    assert "".join(older.choices[0].logprobs.tokens or []) == older.choices[0].text


async def test_penalties_biases_and_min_tokens_change_the_text(
    client: openai.AsyncOpenAI, tokenizer: TargetTokenizer
) -> None:
    greedy = {"model": MODEL, "prompt": "ha ha ha ha ha ha ha ha", "max_tokens": 12, "temperature": 0}
    plain = (await client.completions.create(**greedy)).choices[0].text
    assert plain.count(" ha") > 3
    for options in ({"frequency_penalty": 2}, {"extra_body": {"repetition_penalty": 2}}):
        penalised = (await client.completions.create(**greedy, **options)).choices[0].text
        assert penalised.count(" ha") < plain.count(" ha"), options
    sampled = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 64, "seed": 3}
    texts = [
        (await client.completions.create(**sampled, presence_penalty=penalty)).choices[0].text for penalty in (-2, 0, 2)
    ]
    assert len(set(texts)) == 3
    (cat,) = tokenizer.encode_text(" cat")
    biased = await client.completions.create(**greedy, logit_bias={str(cat): 100})
    assert biased.choices[0].text == " cat" * 12
    eos = {str(tokenizer.stop_ids[0]): 100}
    ended = await client.completions.create(**greedy, logit_bias=eos)
    assert (ended.choices[0].text, ended.choices[0].finish_reason) == ("", "stop")
    late = await client.completions.create(**greedy, logit_bias=eos, extra_body={"min_tokens": 4})
    assert late.usage is not None
    assert late.usage.completion_tokens == 5
    assert plain.startswith(late.choices[0].text)


async def test_errors_arrive_as_the_client_s_own_and_name_the_field(client: openai.AsyncOpenAI) -> None:
    for options, param in (
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"9999999": 1}}, "logit_bias"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"extra_body": {"surprise": 1}}, "surprise"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=ASKED, **options)
        assert refused.value.param == param
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="other", messages=ASKED)
    (model,) = [model async for model in client.models.list()]
    assert model.id == MODEL
    assert model.max_model_len > 1000


# --- LangChain --------------------------------------------------------------------------------------------------------


async def test_a_chat_model_of_langchain_works_unchanged(system: Processes) -> None:
    model = ChatOpenAI(
        model=MODEL,
        base_url=f"{system.system.plan.address}/v1",
        api_key="none",
        temperature=0,
        max_tokens=24,
        max_retries=0,
    )
    answer = await model.ainvoke([("system", "Be brief."), ("human", QUESTION)])
    assert "Paris" in answer.content
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    pieces = [piece async for piece in model.astream([("system", "Be brief."), ("human", QUESTION)])]
    assert len(pieces) > 1
    assert "".join(str(piece.content) for piece in pieces) == answer.content
    scored = await model.bind(logprobs=True, top_logprobs=2).ainvoke(QUESTION)
    content = scored.response_metadata["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"] or []) for token in content).decode() == scored.content
    sampling = model.model_copy(update={"n": 2, "temperature": 0.9, "seed": 5})
    (choices,) = (await sampling.agenerate([[HumanMessage(QUESTION)]])).generations
    assert len({choice.text for choice in choices}) == 2


# --- curl -------------------------------------------------------------------------------------------------------------


async def test_the_curl_lines_of_the_document_get_answers(system: Processes) -> None:
    assert shutil.which("curl"), "the document asks with curl: install it"
    blocks = re.findall(r"^```sh\n(.*?)^```$", API.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        command = block.replace(ADDRESS, system.system.plan.address)
        process = await asyncio.create_subprocess_exec(
            "bash", "-ec", command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            told, complaint = await process.communicate()
        assert process.returncode == 0, complaint.decode()
        assert told.strip(), block
        assert b'{"error":{' not in told, told.decode()
