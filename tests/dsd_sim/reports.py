"""Builder of reports without a simulation."""

from __future__ import annotations

import msgspec

from dsd_sim.studies.report import GuessFates, SimReport, TargetTokens, TimeStats


def a_report(**figures: object) -> SimReport:
    """A report with these figures; everything else is 0 or empty."""
    nothing: dict[object, object] = {int: 0, float: 0.0, str: "", TimeStats: TimeStats(0.0, 0.0, 0.0, 0.0)}
    nothing |= {GuessFates: GuessFates(0, 0, 0, 0, 0), TargetTokens: TargetTokens(0, 0)}
    fields = {field.name: nothing.get(field.type) for field in msgspec.structs.fields(SimReport)}
    return SimReport(**(fields | figures))
