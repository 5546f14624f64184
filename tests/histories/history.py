"""One history: a schedule played to its end, and what came of it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from tests.histories.clock import installed
from tests.histories.schedule import Schedule
from tests.histories.violation import Violation
from tests.histories.world import World


@dataclass(frozen=True, slots=True)
class Outcome:
    """violation: the rule that was broken; empty: none was. num_hits: messages that a fault of a link touched."""

    seed: int
    violation: str
    num_answers: int
    num_failed: int
    num_tokens: int
    num_hits: int
    virtual_ms: float

    @property
    def command(self) -> str:
        """What repeats the history."""
        return f"python -m tests.histories --seed {self.seed}"


def play(schedule: Schedule, notes: list[str] | None = None) -> Outcome:
    """Plays a schedule. notes: takes a line for each event. An error of a service is a violation too."""
    world = World(schedule, notes)
    violation = ""
    with installed(world.clock):
        try:
            world.run()
        except Violation as broken:
            violation = str(broken)
        except Exception as error:
            violation = "".join(traceback.format_exception(error)[-3:]).strip()
    world.say(violation or "nothing is left")
    return Outcome(
        schedule.seed,
        violation,
        world.num_answers,
        world.num_failed,
        world.num_tokens,
        world.bus.num_hits,
        world.clock.now_ms,
    )
