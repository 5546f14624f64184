"""GET /v1/dsd/requests: what became of requests, told to the key that asked them, within bounds."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.gateway.inspector import journal, recent
from services.gateway.inspector.journal import Record
from services.gateway.inspector.recent import RecentRequests
from shared.protocol.messages import Tally
from tests.gateway.admission.test_api_keys import KEYS, bearer, entry, write
from tests.gateway.conftest import World, a_world, until
from tests.gateway.fakes import MODEL

CHAT, REQUESTS = "/v1/chat/completions", "/v1/dsd/requests"
SECRET = "a prompt that nobody else may see"


async def ask(world: World, key: str = "", **changes: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 24, **changes}
    response = await world.client.post(CHAT, json=body, headers=bearer(key) if key else {})
    return await response.json()


async def told(world: World, path: str = "", key: str = "", status: int = 200) -> dict[str, Any]:
    response = await world.client.get(REQUESTS + path, headers=bearer(key) if key else {})
    assert response.status == status, await response.text()
    return await response.json()


def session_of(answer: dict[str, Any]) -> str:
    return answer["id"].removeprefix("chatcmpl-")


@pytest.fixture
async def keyed(folder: Path, tmp_path: Path) -> AsyncIterator[World]:
    write(tmp_path / "keys.toml", *(entry(name, key) for name, key in KEYS.items()))
    async with a_world(folder, api_keys_file=str(tmp_path / "keys.toml")) as world:
        await world.verifier()
        yield world


async def test_a_request_is_told_with_the_figures_of_its_answer(world: World) -> None:
    await world.verifier()
    await world.drafter()
    answer = await ask(world)
    (request,) = (await told(world))["requests"]
    assert request["id"] == session_of(answer)
    assert request["outcome"] == answer["choices"][0]["finish_reason"]
    assert request["num_tokens"] == answer["usage"]["completion_tokens"]
    assert request["num_prompt_tokens"] == answer["usage"]["prompt_tokens"]
    for name in ("speculation", "verifier", "drafter", "num_verdicts", "accepted", "rejected", "late", "discarded"):
        assert request[name] == answer["dsd"][name]
    assert 0 <= request["started_ms"] <= request["ttft_ms"] <= request["total_ms"]
    assert request["ttft_ms"] == pytest.approx(answer["dsd"]["ttft_ms"], abs=50)


async def test_its_verdicts_add_up_to_the_answer_in_the_order_in_which_they_came(world: World) -> None:
    await world.verifier()
    await world.drafter()
    request = await told(world, f"/{session_of(await ask(world))}")
    verdicts = request["verdicts"]
    assert sum(each["num_tokens"] for each in verdicts) == request["num_tokens"]
    for fate in ("accepted", "rejected", "late", "discarded"):
        assert sum(each[fate] for each in verdicts) == request[fate]
    assert sum(each["num_accepted"] for each in verdicts) == request["accepted"] > 0
    assert [each["at_ms"] for each in verdicts] == sorted(each["at_ms"] for each in verdicts)
    assert {each["own"] for each in verdicts if each["num_tokens"] > each["num_accepted"]} <= {"bonus", "target"}
    assert any(each["held_ms"] is not None for each in verdicts), "drafts came"
    kinds = [step["kind"] for step in request["steps"]]
    assert kinds[:2] == ["open", "opened"]
    assert "speculate" in kinds
    assert request["num_left_out"] == 0


async def test_guesses_of_the_verifiers_own_are_told_in_answer_and_timeline_and_come_with_speculation_alone(
    world: World,
) -> None:
    verifier = await world.verifier()
    verifier.max_looked_up, verifier.script = 4, lambda prompt_ids: [11, 12, 13]  # again and again
    answer = await ask(world)
    request = await told(world, f"/{session_of(answer)}")
    looked_up = sum(each["num_looked_up"] for each in request["verdicts"])
    assert looked_up == request["looked_up"] == answer["dsd"]["looked_up"]
    assert 24 - looked_up <= request["num_verdicts"] < 12
    assert answer["dsd"]["accepted"] == answer["dsd"]["rejected"] == 0
    alone = await ask(world, dsd={"speculation": "off"})
    assert (alone["dsd"]["looked_up"], alone["dsd"]["num_verdicts"]) == (0, 24)


async def test_wrong_guesses_are_told_and_the_token_in_their_place_is_recovered(world: World) -> None:
    await world.verifier()
    drafter = await world.drafter()
    drafter.script = lambda prompt_ids: [1]
    request = await told(world, f"/{session_of(await ask(world))}")
    assert request["rejected"] > 0
    assert request["accepted"] == 0
    assert any(each["own"] == "recovered" and each["rejected"] == 1 for each in request["verdicts"])


async def test_a_request_whose_verifier_dies_tells_of_both(world: World) -> None:
    first = await world.verifier("first", pass_s=0.01)
    asking = asyncio.create_task(ask(world))
    await until(lambda: bool(first.sessions))
    second = await world.verifier("second")
    await first.kill()
    request = await told(world, f"/{session_of(await asking)}")
    assert request["num_failovers"] == 1
    assert request["verifier"] == "second" == second.name
    steps = [(step["kind"], step["instance"]) for step in request["steps"]]
    assert ("open", "first") in steps
    assert steps.index(("open", "first")) < steps.index(("open", "second"))
    assert sum(each["num_tokens"] for each in request["verdicts"]) == request["num_tokens"]


async def test_requests_that_failed_or_were_given_up_say_so(world: World) -> None:
    verifier = await world.verifier(pass_s=0.01)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 200}
    world.answer = "hello " * 300
    async with world.client.post(CHAT, json=body) as response:
        await response.content.readline()
    await world.no_session_is_left()
    verifier.refuses, verifier.refuses_finally = "internal", True
    await ask(world)
    outcomes = [each["outcome"] for each in (await told(world))["requests"]]
    assert outcomes == ["internal", "cancelled"]


async def test_a_key_is_told_of_its_own_requests_alone(keyed: World) -> None:
    answers = {name: await ask(keyed, key) for name, key in KEYS.items()}
    for name, key in KEYS.items():
        (request,) = (await told(keyed, key=key))["requests"]
        assert request["id"] == session_of(answers[name])
    await told(keyed, f"/{session_of(answers['alice'])}", KEYS["alice"])
    await told(keyed, f"/{session_of(answers['alice'])}", KEYS["bob"], status=404)
    await told(keyed, status=401)


async def test_a_new_key_of_an_old_name_is_told_nothing_of_the_old_one(keyed: World, tmp_path: Path) -> None:
    await ask(keyed, KEYS["alice"])
    write(tmp_path / "keys.toml", entry("alice", "another"))
    async with asyncio.timeout(10):
        while (await keyed.client.get(REQUESTS, headers=bearer("another"))).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await told(keyed, key="another"))["requests"] == []


async def test_no_text_no_token_and_no_key_is_kept(keyed: World) -> None:
    keyed.answer = "unmistakable words"
    request_id = session_of(await ask(keyed, KEYS["alice"]))
    record = keyed.gateway.sessions.recent._records  # type: ignore[union-attr]
    everything = repr(record) + json.dumps(await told(keyed, f"/{request_id}", KEYS["alice"]))
    for secret in (SECRET, "unmistakable", KEYS["alice"]):
        assert secret not in everything


async def test_where_it_is_switched_off_nothing_is_kept_or_told(folder: Path) -> None:
    async with a_world(folder, inspector=False) as world:
        await world.verifier()
        await ask(world)
        error = (await told(world, status=404))["error"]
        assert "DSD_INSPECTOR" in error["message"]
        assert world.gateway.sessions.recent is None


async def test_of_a_long_answer_the_first_messages_are_kept_and_the_others_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_VERDICTS", 3)
    await world.verifier()
    request = await told(world, f"/{session_of(await ask(world))}")
    assert len(request["verdicts"]) == 3
    assert request["num_left_out"] > 0
    assert request["num_tokens"] > 3
    assert request["tpot_ms"] is not None


# --- bounds -----------------------------------------------------------------------------------------------------------


def record(number: int, num_bytes: int = 0) -> Record:
    fields: dict[str, Any] = dict.fromkeys(each.name for each in dataclasses.fields(Record))
    return Record(
        **fields | {"session_id": f"{number:032x}", "tally": Tally(), "steps": (), "packed": bytes(num_bytes)}
    )


def test_the_last_hundred_of_each_owner_are_kept_the_newest_first() -> None:
    kept = RecentRequests()
    for number in range(130):
        kept.add("alice", record(number))
    kept.add("bob", record(500))
    assert [int(each.session_id, 16) for each in kept.of("alice")] == list(range(129, 29, -1))
    assert [int(each.session_id, 16) for each in kept.of("bob")] == [500]
    assert kept.find("alice", f"{0:032x}") is None
    assert kept.find("bob", f"{129:032x}") is None


def test_all_records_together_stay_below_the_limit_and_the_largest_owner_gives_way() -> None:
    kept = RecentRequests()
    kept.add("bob", record(0))
    for number in range(1, 100):
        kept.add("alice", record(number, recent.MAX_BYTES // 20))
        assert kept.num_bytes <= recent.MAX_BYTES
    assert len(kept.of("bob")) == 1
    assert 0 < len(kept.of("alice")) < 20
