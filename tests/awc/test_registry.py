"""The registry is the one list of window policies: settings and scenarios offer exactly its names."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from awc.registry import POLICIES
from dsd_sim.scenario.scenario import Policies
from services.window_controller.settings import ControllerSettings


def test_the_controller_offers_exactly_the_registered_policies() -> None:
    assert [ControllerSettings(window_policy=name).window_policy for name in POLICIES] == list(POLICIES)
    assert f"{', '.join(POLICIES)} " in str(ControllerSettings.model_fields["window_policy"].description)
    with pytest.raises(ValidationError, match=f"must be one of {', '.join(POLICIES)} or module:Class, got 'oracle'"):
        ControllerSettings(window_policy="oracle")


def test_the_simulator_takes_exactly_the_registered_policies() -> None:
    assert [Policies(windows=name).windows for name in POLICIES] == list(POLICIES)
    with pytest.raises(ValidationError, match=f"must be one of {', '.join(POLICIES)} or module:Class, got 'oracle'"):
        Policies(windows="oracle")
