"""Results of runs and of an evaluation, for tests."""

from __future__ import annotations

from dsd_sim.engine.pair_reports import MeanReport
from dsd_sim.studies.report import GuessFates, SimReport, TimeStats
from tests.dsd_sim.reports import a_report

SEEN = MeanReport(
    num_reports=9,
    acceptance=0.8,
    window=4.0,
    num_sessions=2.0,
    context=90.0,
    rtt_ms=20.0,
    queue=0.2,
    tpot_ms=25.0,
    pass_ms=40.0,
    batch=3.0,
    pass_tokens=12.0,
    draft_ms=6.0,
)


def report(score: float, seen: MeanReport | None = SEEN, drafted: int = 10, priced: float = 1.0) -> SimReport:
    times = TimeStats(20.0, 20.0, 20.0, 20.0)
    fates = GuessFates(drafted, 0, 0, 0, 0)
    return a_report(
        soft_goodput=score,
        priced_goodput=priced,
        guesses_per_token=drafted / 10,
        seen=seen,
        fates=fates,
        num_tokens=10,
        tpot_ms=times,
    )
