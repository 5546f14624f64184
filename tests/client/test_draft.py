"""dsd draft: what it refuses, the archive that it fetches, and what it hands to the drafter."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from client.drafting.archive import NoDraft, fetched
from client.drafting.drafter import own_name, public_key
from client.wire import DrafterJoin
from shared.runtime import nats_keys
from tests.client.conftest import Done, address, dsd
from tests.gateway.admission.test_api_keys import KEYS, entry, write
from tests.gateway.conftest import World, a_world

SEED, FOREIGN = nats_keys.new_seed(), nats_keys.new_seed()
OWN = {"key-alice": nats_keys.public_key(SEED)}


@pytest.fixture
async def keyed(folder: Path, tmp_path: Path) -> AsyncIterator[World]:
    file = tmp_path / "keys.toml"
    owned = f'[alice.own_drafters]\nkey-alice = "{OWN["key-alice"]}"\n'
    write(file, entry("bob", KEYS["bob"]), entry("alice", KEYS["alice"]), owned)
    async with a_world(folder, api_keys_file=str(file), drafter_nats_url="nats://127.0.0.1:1") as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from tests.gateway.tiny import make_folder

    return make_folder(tmp_path / "target")


async def draft(world: World, *argv: str, api_key: str = KEYS["alice"], key: str = SEED) -> Done:
    return await dsd("draft", *argv, url=address(world), env={"DSD_API_KEY": api_key, "DSD_DRAFTER_KEY": key})


async def test_a_wrong_key_is_refused_by_what_to_do(keyed: World, folder: Path) -> None:
    cases = {
        "dsd: No valid API key": {"api_key": "dsd-wrong"},
        "dsd: The API key bob has no drafters: an operator makes them": {"api_key": KEYS["bob"]},
        "dsd: set DSD_DRAFTER_KEY to the key of one of the API key's drafters: key-alice": {"key": ""},
        "dsd: the key in DSD_DRAFTER_KEY is of none of the API key's drafters: key-alice": {"key": FOREIGN},
        "dsd: DSD_DRAFTER_KEY holds no drafter's key": {"key": "SECRET"},
    }
    for told, changes in cases.items():
        done = await draft(keyed, "--draft", str(folder), **changes)
        assert done.status == 1
        assert done.err.startswith(told), done.err
        assert len(done.err.splitlines()) == 1
        assert "SECRET" not in done.err


async def test_a_draft_of_another_vocabulary_is_refused_before_it_joins(keyed: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    done = await draft(keyed, "--draft", str(tmp_path / "other"))
    assert done.status == 2
    assert "is no draft for tiny: its vocabulary is another one" in done.err


async def test_without_a_draft_and_an_archive_it_says_so(keyed: World) -> None:
    done = await draft(keyed)
    assert (done.status, done.err.startswith("dsd: the gateway names no draft to fetch: name a folder")) == (1, True)


def test_the_client_and_the_services_know_one_public_key() -> None:
    assert public_key(SEED) == nats_keys.public_key(SEED)
    join = DrafterJoin("tiny", "", "", "", {"key-alice-0": nats_keys.public_key(FOREIGN), **OWN}, "")
    assert own_name(join, SEED) == "key-alice"


@asynccontextmanager
async def archive(*members: tuple[str, bytes]) -> AsyncIterator[tuple[str, str, list[str]]]:
    """A served archive: its address, its digest, the requests so far."""
    packed, asked = io.BytesIO(), list[str]()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

    async def serve(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(body=packed.getvalue())

    app = web.Application()
    app.router.add_get("/draft.tar.gz", serve)
    async with TestServer(app) as server:
        yield str(server.make_url("/draft.tar.gz")), hashlib.sha256(packed.getvalue()).hexdigest(), asked


async def test_an_archive_is_fetched_once_and_checked(tmp_path: Path) -> None:
    async with archive(("draft-int8/tokenizer.json", b"{}"), ("draft-int8/model.onnx", b"x")) as (url, digest, asked):
        first = await fetched(f"{url}#sha256={digest}", tmp_path / "drafts")
        assert (first.name, (first / "model.onnx").read_bytes()) == ("draft-int8", b"x")
        assert await fetched(f"{url}#sha256={digest}", tmp_path / "drafts") == first
        assert len(asked) == 1
        with pytest.raises(NoDraft, match="not the archive that the gateway names"):
            await fetched(f"{url}#sha256={'0' * 64}", tmp_path / "drafts")
        assert [each.name for each in (tmp_path / "drafts").iterdir()] == [digest], "nothing half done is left"


@pytest.mark.parametrize(
    ("member", "told"), [("../../tokenizer.json", "can't be unpacked"), ("model.onnx", "holds no draft")]
)
async def test_an_archive_that_is_no_draft_or_writes_elsewhere_is_refused(
    tmp_path: Path, member: str, told: str
) -> None:
    async with archive((member, b"{}")) as (url, digest, _):
        with pytest.raises(NoDraft, match=told):
            await fetched(f"{url}#sha256={digest}", tmp_path / "drafts")
    assert not (tmp_path / "drafts/tokenizer.json").exists()


async def test_an_address_that_nobody_serves_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoDraft, match=r"can't fetch http://127\.0\.0\.1:1/"):
        await fetched(f"http://127.0.0.1:1/draft.tar.gz#sha256={'0' * 64}", tmp_path)


async def test_a_python_that_can_not_unpack_safely_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    async with archive(("tokenizer.json", b"{}")) as (url, digest, asked):
        with pytest.raises(NoDraft, match=r"take 3\.11\.4 or newer, or unpack http\S+ yourself"):
            await fetched(f"{url}#sha256={digest}", tmp_path)
    assert asked == []


async def test_a_place_that_can_not_keep_a_draft_is_named(tmp_path: Path) -> None:
    (tmp_path / "drafts").touch()
    async with archive(("tokenizer.json", b"{}")) as (url, digest, _):
        with pytest.raises(NoDraft, match=f"can't keep the draft in {tmp_path / 'drafts' / digest}: File exists"):
            await fetched(f"{url}#sha256={digest}", tmp_path / "drafts")
        (tmp_path / digest).touch()
        with pytest.raises(NoDraft, match=f"can't keep the draft in {tmp_path / digest}: Not a directory"):
            await fetched(f"{url}#sha256={digest}", tmp_path)


async def test_two_processes_that_fetch_a_draft_at_once_both_have_it(tmp_path: Path) -> None:
    async with archive(("tokenizer.json", b"{}")) as (url, digest, asked):
        found = await asyncio.gather(*(fetched(f"{url}#sha256={digest}", tmp_path) for _ in range(2)))
        assert found == [tmp_path / digest] * 2
        assert len(asked) == 2


@pytest.mark.parametrize("end", ["", "#sha256=", "#sha256=../..", f"#sha256={'0' * 63}"])
async def test_an_archive_without_a_digest_is_not_looked_for(tmp_path: Path, end: str) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(NoDraft, match="without its digest"):
        await fetched(f"http://127.0.0.1:1/draft.tar.gz{end}", tmp_path / "a" / "b")
