"""Draws the pictures of docs/monitoring.md: python -m tests.metrics.pictures.

A live system with stand-in models, a Prometheus beside it, and clients in three phases: light load, too much load, and
light load after a drafter was killed.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.grafana.every import DASHBOARDS
from deploy.grafana.panels import Dashboard
from shared.runtime.home import default_models_dir
from tests.metrics.drawing import Drawn, Line, draw, legend
from tests.metrics.live import Prometheus, live_system, prometheus, standin_plan
from tests.metrics.reading import ROOT

FOLDER = ROOT / "docs" / "pictures"
PHASE_S, STEP_S, RATE_INTERVAL = 60.0, 1.0, "15s"


async def main() -> None:
    with TemporaryDirectory(prefix="dsd-pictures-") as name:
        folder = Path(name)
        async with (
            live_system(standin_plan(default_models_dir(), folder / "standin"), folder / "system") as system,
            prometheus(system, folder / "prometheus", 1.0) as scraping,
        ):
            start = time.time()
            for num_clients, killed in ((3, ""), (12, ""), (3, "drafter-1")):
                if killed:
                    system.kill(killed)
                async with system.load(num_clients):
                    await asyncio.sleep(PHASE_S)
            for board in DASHBOARDS:
                drawn = await _lines(scraping, board, start, time.time())
                await asyncio.to_thread(draw, board, drawn, FOLDER / f"{board.name}.png")


async def _lines(source: Prometheus, board: Dashboard, start: float, end: float) -> Drawn:
    found: Drawn = []
    for panel in board.panels:
        lines = []
        for query in panel.queries:
            expr = query.expr.replace("$__rate_interval", RATE_INTERVAL)
            for series in await source.over(expr, start, end, STEP_S):
                times = [float(at) - start for at, _ in series["values"]]
                values = [float(value) for _, value in series["values"]]
                lines.append(Line(legend(query.legend, series["metric"]), times, values))
        found.append(lines)
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    asyncio.run(main())
