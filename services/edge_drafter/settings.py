"""What can be set about a drafter; every field is an environment variable DSD_<NAME> and a flag --<name>."""

from __future__ import annotations

from pydantic import Field

from shared.runtime.config import ServiceSettings
from shared.timing import DECISION_TTL_S, REPORT_S


class DrafterSettings(ServiceSettings):
    """Settings of `python -m services.edge_drafter`."""

    name: str = Field("drafter", description="Name of this instance, part of its subjects and permissions")
    draft: str = Field(..., description="Folder of the draft model (ONNX, with genai_config.json or draft_config.json)")
    model_name: str = Field("smollm2-135m", description="Name of the target model that this draft model guesses for")
    num_threads: int = Field(1, ge=1, description="CPU threads of the draft model")
    feed_tokens: int = Field(64, ge=1, description="Most tokens fed in one step when catching up with a text")
    max_sessions: int = Field(16, ge=1, description="Most sessions drafted for at once")
    report_s: float = Field(REPORT_S, ge=0.05, description="Least time between two reports to the controllers")
    decision_ttl_s: float = Field(
        DECISION_TTL_S, gt=0, description="A controller's decision counts no longer than this"
    )
