"""What `dsd doctor` finds: one line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """check: what was looked at. todo: what to do, where something is wrong or could be better."""

    level: Level
    check: str
    text: str
    todo: str = ""

    def __str__(self) -> str:
        todo = f" -> {self.todo}" if self.todo else ""
        return f"{self.level:<5} {self.check:<12} {self.text}{todo}"
