"""GET /v1/dsd/drafter tells an API key how its own drafters join, and nothing of the drafters of others."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from pydantic import ValidationError

from services.gateway.settings import GatewaySettings
from shared.runtime.nats_keys import new_seed, public_key
from shared.runtime.vocabulary import vocabulary_digest
from tests.gateway.admission.test_api_keys import KEYS, bearer, entry, write
from tests.gateway.conftest import World, a_world
from tests.gateway.fakes import MODEL

PATH, ADDRESS = "/v1/dsd/drafter", "wss://dsd.example"
DRAFT = f"https://models.example/draft.tar.gz#sha256={'0' * 64}"
PUBLIC = public_key(new_seed())


def with_drafter(name: str, drafter: str, public: str = PUBLIC) -> str:
    return entry(name, KEYS[name]) + f'[{name}.own_drafters]\n{drafter} = "{public}"\n'


async def test_a_key_is_told_of_its_own_drafters_and_of_no_secret(folder: Path, tmp_path: Path) -> None:
    file, ca = tmp_path / "keys.toml", tmp_path / "ca.crt"
    write(file, with_drafter("alice", "key-alice"), entry("bob", KEYS["bob"]))
    trustme.CA().cert_pem.write_to_path(ca)
    changes = {"drafter_nats_url": ADDRESS, "drafter_nats_ca": str(ca), "draft_url": DRAFT}
    async with a_world(folder, api_keys_file=str(file), **changes) as world:
        told = await (await world.client.get(PATH, headers=bearer(KEYS["alice"]))).json()
        assert told == {
            "model": MODEL,
            "vocabulary": vocabulary_digest(folder),
            "nats_url": ADDRESS,
            "nats_ca": ca.read_text(),
            "own_drafters": {"key-alice": PUBLIC},
            "draft_url": DRAFT,
        }
        refused = await world.client.get(PATH, headers=bearer(KEYS["bob"]))
        assert (refused.status, (await refused.json())["error"]["code"]) == (404, "no_drafters")
        assert (await world.client.get(PATH)).status == 401


async def test_without_keys_any_name_may_join_and_without_an_address_none(folder: Path, world: World) -> None:
    async with a_world(folder, drafter_nats_url="nats://127.0.0.1:4222") as other:
        assert (await (await other.client.get(PATH)).json())["own_drafters"] is None
    refused = await world.client.get(PATH)
    assert refused.status == 404
    assert "DSD_DRAFTER_NATS_URL" in (await refused.json())["error"]["message"]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("drafter_nats_url", "nats://nats.example:4222", "in clear"),
        ("drafter_nats_url", "wss://a.example,ws://b.example", "in clear"),
        ("drafter_nats_url", "https://a.example", "nats://host:port"),
        ("drafter_nats_ca", "missing.crt", "can't be read"),
        ("draft_url", "https://models.example/draft.tar.gz", "sha256"),
        ("draft_url", f"file:///draft.tar.gz#sha256={'0' * 64}", "sha256"),
    ],
)
def test_an_address_that_would_show_prompts_and_a_draft_without_its_digest_are_refused(
    folder: Path, field: str, value: str, told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        GatewaySettings(target=str(folder), **{field: value})
