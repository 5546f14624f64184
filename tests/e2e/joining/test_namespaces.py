"""Where a network namespace can't be made, its tests are skipped, and fail in continuous integration."""

from __future__ import annotations

import pytest

from tests.e2e.joining.system import another_namespace


@pytest.mark.parametrize(("ci", "raised"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_without_the_program_ip_nothing_passes(
    monkeypatch: pytest.MonkeyPatch, ci: str, raised: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(raised, match="iproute2"), another_namespace():
        pass
