"""The compiler of grammars for a target: one for all of a process."""

from __future__ import annotations

from pathlib import Path

from services.cloud_verifier.grammars import load_grammars
from services.gateway.formats import structured
from tests.gateway.tiny import make_folder


def test_what_a_service_has_compiled_its_engine_need_not(tmp_path: Path) -> None:
    target = str(make_folder(tmp_path))
    service, engine = load_grammars(target, 330), load_grammars(target, 330)
    grammar = structured.of_choice(["yes", "no"])
    assert not engine.has(grammar)
    service.start(grammar)
    assert engine.has(grammar)
