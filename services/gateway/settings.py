"""Settings of a gateway. Every field is an environment variable DSD_<NAME> and a flag --<name>."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from services.gateway.admission.api_keys import KeyFile
from services.gateway.formats.registry import ReasoningParserName, ToolParserName
from services.gateway.session.timeouts import PollTiming, SessionTiming
from shared.policies.routing import ROUTERS
from shared.runtime.config import ServiceSettings, check_nats_addresses, is_pem
from shared.runtime.home import DEFAULT_MODEL

RouterName = Literal[*ROUTERS]  # type: ignore[valid-type]


class GatewaySettings(ServiceSettings):
    """Settings of `python -m services.gateway`."""

    name: str = Field("gateway", description="Name of this instance, part of its subjects and permissions")
    http_port: int = Field(8080, ge=0, le=65535, description="Port of the API and of the health and metrics endpoints")
    target: str = Field(..., description="Folder with the target's tokenizer, chat template and configuration")
    model_name: str = Field(DEFAULT_MODEL, description="Name under which clients ask for the target model")
    default_max_tokens: int = Field(
        0, ge=0, description="Length of an answer whose client sets no max_tokens; 0: as long as the context allows"
    )
    verifier_routing: RouterName = Field("jsq", description="Policy that chooses the verifier of a session")
    drafter_routing: RouterName = Field(
        "jsq8", description="Policy that chooses the drafter of a session, of 64 random ones"
    )
    instances_per_name: int = Field(
        1, ge=1, description="Verifiers or drafters that may share a name; a newer one replaces the oldest"
    )
    max_sessions: int = Field(256, ge=1, description="Most answers under way at once; further requests wait")
    max_queue: int = Field(256, ge=0, description="Most waiting requests; further ones are refused with status 503")
    queue_timeout_s: float = Field(30.0, gt=0, description="Seconds that a request may wait in the queue")
    request_timeout_s: float = Field(
        600.0, ge=0, description="Seconds from a request to the end of its answer, at most; 0: no limit"
    )
    api_keys_file: str = Field("", description="File with the valid API keys (docs/api.md); empty: no key is required")
    tool_parser: ToolParserName = Field(
        "auto", description="Format in which the model writes tool calls; auto: by the chat template"
    )
    reasoning_parser: ReasoningParserName = Field(
        "auto", description="Format in which the model writes its reasoning; auto: by the chat template"
    )
    unknown_fields: Literal["refuse", "ignore"] = Field(
        "refuse", description="What becomes of unknown fields of a request; ignored ones are named in a header"
    )
    console: bool = Field(True, description="Whether the page at /console is served (docs/console.md)")
    inspector: bool = Field(True, description="Whether clients can ask what became of their last 100 requests")
    drafter_nats_url: str = Field(
        "", description="NATS address for users' own drafters (docs/drafters.md): tls:// or wss://; empty: none join"
    )
    drafter_nats_ca: str = Field(
        "", description="File with the CA certificate that has signed that server's; empty: the users' system CAs"
    )
    draft_url: str = Field("", description="Archive of a draft for them: https://…#sha256=<64 hexadecimal digits>")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Largest request body in bytes")
    client_timeout_s: float = Field(
        60.0, gt=0, description="Seconds after which a client that neither sends nor reads is dropped"
    )
    open_timeout_s: float = Field(1.0, gt=0, description="Seconds after which an unanswered Open is repeated")
    poll_after_s: float = Field(
        0.5, gt=0, description="Shortest silence of a verifier, in seconds, before it is polled"
    )
    session_timeout_s: float = Field(
        180.0, gt=0, description="Seconds without a working verifier after which an answer fails"
    )

    @field_validator("target")
    @classmethod
    def _holds_a_tokenizer(cls, target: str) -> str:
        if not (Path(target) / "tokenizer.json").is_file():
            raise ValueError("the folder must contain a tokenizer.json")
        return target

    @field_validator("drafter_nats_url")
    @classmethod
    def _is_encrypted(cls, drafter_nats_url: str) -> str:
        if drafter_nats_url:
            check_nats_addresses(drafter_nats_url)
            if not all(_is_safe(url.strip()) for url in drafter_nats_url.split(",")):
                raise ValueError("prompts would travel in clear: each address must be tls://, wss:// or a loopback one")
        return drafter_nats_url

    @field_validator("drafter_nats_ca")
    @classmethod
    def _is_a_certificate(cls, drafter_nats_ca: str) -> str:
        try:
            if drafter_nats_ca and not is_pem(Path(drafter_nats_ca).read_text(encoding="utf-8")):
                raise ValueError("the file holds no certificate")
        except OSError as error:
            raise ValueError(f"can't be read: {error.strerror}") from error
        return drafter_nats_ca

    @field_validator("draft_url")
    @classmethod
    def _names_its_digest(cls, draft_url: str) -> str:
        if draft_url and not re.fullmatch(r"https?://[^#\s]+#sha256=[0-9a-f]{64}", draft_url):
            raise ValueError("must look like https://host/draft.tar.gz#sha256=<64 hexadecimal digits>")
        return draft_url

    @field_validator("api_keys_file")
    @classmethod
    def _holds_keys(cls, api_keys_file: str) -> str:
        if api_keys_file:
            KeyFile(Path(api_keys_file))
        return api_keys_file

    @property
    def timing(self) -> SessionTiming:
        poll = PollTiming(min_silence_s=self.poll_after_s, max_silence_s=max(5.0, self.poll_after_s))
        return SessionTiming(poll, open_timeout_s=self.open_timeout_s, session_timeout_s=self.session_timeout_s)


def _is_safe(url: str) -> bool:
    """Whether a NATS address is encrypted, or on this machine."""
    parts = urlsplit(url)
    return parts.scheme in ("tls", "wss") or parts.hostname in ("127.0.0.1", "::1", "localhost")
