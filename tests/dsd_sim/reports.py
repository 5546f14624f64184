"""Reports of simulations that never ran."""

from __future__ import annotations

import msgspec

from dsd_sim.studies.report import Fates, Own, Report, Times


def a_report(**figures: object) -> Report:
    """With nothing in it but these."""
    nothing: dict[object, object] = {int: 0, float: 0.0, str: "", Times: Times(0.0, 0.0, 0.0, 0.0)}
    nothing |= {Fates: Fates(0, 0, 0, 0, 0), Own: Own(0, 0)}
    fields = {field.name: nothing.get(field.type) for field in msgspec.structs.fields(Report)}
    return Report(**(fields | figures))
