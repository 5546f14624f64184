"""GET /v1/dsd/drafter: what a user's own drafter must know to join the fleet (docs/drafters.md).

Invariant: an API key sees only its own drafters, and no secret. Only the user has the drafters' NATS keys.
So whoever steals the API key cannot read its owner's prompts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from services.gateway.admission.api_keys import ApiKey
from services.gateway.errors import ApiError
from services.gateway.settings import GatewaySettings
from shared.runtime.vocabulary import vocabulary_digest


class DrafterJoin(msgspec.Struct, frozen=True):
    """The answer. vocabulary: the digest of the target's (shared/runtime/vocabulary.py). nats_ca: PEM; empty: system
    CAs. own_drafters: public NATS keys by name; None: there are no API keys, and any name may join. draft_url: of an
    archive with a draft; empty: the user has to bring one."""

    model: str
    vocabulary: str
    nats_url: str
    nats_ca: str
    own_drafters: Mapping[str, str] | None
    draft_url: str


class Joining:
    """Answers by the gateway's settings. The vocabulary is read for the first answer."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._nats_ca = Path(settings.drafter_nats_ca).read_text(encoding="utf-8") if settings.drafter_nats_ca else ""
        self._vocabulary = ""

    async def answer(self, key: ApiKey) -> DrafterJoin:
        """Raises ApiError where the key has no drafters of its own, or none can join."""
        settings = self._settings
        if not settings.drafter_nats_url:
            raise _none("This gateway takes no users' drafters: its operator sets DSD_DRAFTER_NATS_URL")
        if settings.api_keys_file and not key.own_drafters:
            raise _none(f"The API key {key.name} has no drafters: an operator makes them with new_key --drafter")
        if not self._vocabulary:
            self._vocabulary = await asyncio.to_thread(vocabulary_digest, Path(settings.target))
        return DrafterJoin(
            model=settings.model_name,
            vocabulary=self._vocabulary,
            nats_url=settings.drafter_nats_url,
            nats_ca=self._nats_ca,
            own_drafters=key.own_drafters if settings.api_keys_file else None,
            draft_url=settings.draft_url,
        )


def _none(message: str) -> ApiError:
    return ApiError(404, message, code="no_drafters")
