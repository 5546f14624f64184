"""Results of runs and of an evaluation, for tests."""

from __future__ import annotations

from awc_training.evaluate import Evaluation, Scores
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


def report(score: float, seen: MeanReport | None = SEEN, drafted: int = 10, latency_ms: float = 2000.0) -> SimReport:
    times = TimeStats(latency_ms, latency_ms, latency_ms, latency_ms)
    return a_report(soft_goodput=score, seen=seen, fates=GuessFates(drafted, 0, 0, 0, 0), latency_ms=times)


EVALUATION = Evaluation(
    num_scenarios=2,
    classes=[("near", "light"), ("far", "light")],
    transports={
        "stop-and-wait": Scores((0, 4), [[5.0, 10.0], [20.0, 10.0]], {"wc-dnn": [9.9, 18.0]}, {}),
        "sliding": Scores(
            (0, 4),
            [[5.0, 10.0], [20.0, 10.0]],
            {"adaptive": [12.0, 20.0], "ladder": [6.0, 10.0]},
            {"ladder": "interval 3"},
        ),
    },
)
