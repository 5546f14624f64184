"""Settings of a drafter. Each field is an environment variable DSD_<NAME> and a flag --<name>."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator, model_validator

from services.edge_drafter.graphs.providers import KNOWN, Providers
from shared.runtime.config import ServiceSettings
from shared.runtime.home import DEFAULT_MODEL
from shared.runtime.vocabulary import vocabulary_digest
from shared.timing import DECISION_TTL_S, REPORT_S


class DrafterSettings(ServiceSettings):
    """Settings of `python -m services.edge_drafter`."""

    name: str = Field("drafter", description="Name of this instance, used in subjects and permissions")
    draft: str = Field(..., description="Folder of the draft model (ONNX, with genai_config.json or draft_config.json)")
    model_name: str = Field(DEFAULT_MODEL, description="Name of the target model to draft for")
    vocabulary: str = Field(
        "", description="Digest of the target's vocabulary; a draft with another one is refused. Empty: not checked"
    )
    num_threads: int = Field(1, ge=1, description="CPU threads of the draft model")
    draft_providers: str = Field(
        "CPU",
        description="Execution providers of ONNX Runtime in order of preference, separated by commas: "
        f"{', '.join(KNOWN)}. Without CPU, the others must take all nodes of the graph",
    )
    draft_provider_options: dict[str, dict[str, str]] = Field(
        {}, description='ONNX Runtime\'s options of each provider, as JSON: {"OpenVINO": {"device_type": "GPU"}}'
    )
    feed_tokens: int = Field(64, ge=1, description="Most tokens fed in one step while computing a prompt")
    max_sessions: int = Field(16, ge=1, description="Most sessions at once")
    prefix_cache_tokens: int = Field(
        4096, ge=0, description="Most tokens of ended sessions whose KV cache is kept for later prompts; 0: none"
    )
    report_s: float = Field(REPORT_S, ge=0.05, description="Seconds between two reports to the controllers")
    decision_ttl_s: float = Field(
        DECISION_TTL_S, gt=0, description="Seconds after which a controller's decision expires"
    )

    @field_validator("draft_providers")
    @classmethod
    def _are_known(cls, names: str) -> str:
        Providers.parse(names, {})
        return names

    @field_validator("draft_provider_options")
    @classmethod
    def _belong_to_providers(
        cls, options: dict[str, dict[str, str]], info: ValidationInfo
    ) -> dict[str, dict[str, str]]:
        if names := info.data.get("draft_providers"):  # absent if refused
            Providers.parse(names, options)
        return options

    @model_validator(mode="after")
    def _speaks_the_target_s_vocabulary(self) -> DrafterSettings:
        if self.vocabulary and vocabulary_digest(Path(self.draft)) != self.vocabulary:
            raise ValueError(f"{self.draft} is no draft for {self.model_name}: its vocabulary is another one (--draft)")
        return self

    @property
    def providers(self) -> Providers:
        return Providers.parse(self.draft_providers, self.draft_provider_options)
