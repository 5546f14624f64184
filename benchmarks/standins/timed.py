"""Services that log when their models compute: python -m benchmarks.standins.timed LOG SERVICE [--stand-in].

Invariant: service and model, real or stand-in, behave as without a log. Each finished pass or draft step adds one line
to LOG (compute_log.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchmarks.harness.standin import STANDIN
from benchmarks.standins.compute_log import ComputeLog
from benchmarks.standins.settings import StandinDrafterSettings, StandinVerifierSettings
from benchmarks.standins.timed_models import TimedDraft, TimedEngine
from services.cloud_verifier.settings import VerifierSettings, with_vllm_args
from services.edge_drafter.settings import DrafterSettings
from shared.runtime.config import load

if TYPE_CHECKING:  # a timed drafter must not load torch
    from services.cloud_verifier.engine import Engine
    from services.cloud_verifier.service import LoadEngine
    from services.edge_drafter.model import DraftModel

PROG = "python -m benchmarks.standins.timed"


def run_verifier(log: ComputeLog, *, is_standin: bool) -> None:
    settings = load(StandinVerifierSettings if is_standin else VerifierSettings, with_vllm_args([]), PROG)
    if is_standin:
        from benchmarks.standins import loading

        load_engine: LoadEngine = loading.load_engine
    else:
        from services.cloud_verifier.loading import engine_loader

        load_engine = engine_loader(settings)
    from services.cloud_verifier import service

    service.run(settings, lambda given: cast("Engine[Any]", TimedEngine(load_engine(given), log)))


def run_drafter(log: ComputeLog, *, is_standin: bool) -> None:
    settings = load(StandinDrafterSettings if is_standin else DrafterSettings, [], PROG)
    from services.edge_drafter import service

    load_model = service.load_model
    if is_standin:
        from benchmarks.standins.loading import load_draft

        load_model = load_draft
    service.run(settings, lambda given: cast("DraftModel", TimedDraft(load_model(given), log)))


SERVICES = {"cloud_verifier": run_verifier, "edge_drafter": run_drafter}


def main() -> None:
    parser = argparse.ArgumentParser(PROG, description="Runs a service that logs when its model computes.")
    parser.add_argument("log", type=Path, help="file to which each pass or draft step adds a line")
    parser.add_argument("service", choices=SERVICES)
    parser.add_argument(f"--{STANDIN}", dest="is_standin", action="store_true", help="with a stand-in for the model")
    arguments = parser.parse_args()
    with ComputeLog(arguments.log) as log:
        SERVICES[arguments.service](log, is_standin=arguments.is_standin)


if __name__ == "__main__":
    main()
