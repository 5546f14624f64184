"""Statistics of an answer: one line while it grows, a table at its end, sums over a chat.

Invariant: figures that the server did not send are left out, never guessed. Times come from the server's report if
there is one, else from the client's clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from client.gateway import StreamedAnswer
from client.wire import DsdReport, Usage

FATES = ("accepted", "late", "rejected", "discarded")


def status_line(answer: StreamedAnswer) -> Text:
    """Window, acceptance, TPOT and tokens so far."""
    parts = []
    if answer.window is not None:
        parts.append(f"window {answer.window}")
    if answer.acceptance is not None:
        parts.append(f"acceptance {answer.acceptance:.2f}")
    if answer.tpot_ms is not None:
        parts.append(f"TPOT {answer.tpot_ms:.1f} ms")
    if answer.num_tokens:
        parts.append(f"{answer.num_tokens} tokens")
    return Text(" · ".join(parts) or "waiting for the first token", style="reverse", no_wrap=True, overflow="ellipsis")


def table(answer: StreamedAnswer) -> Table:
    """The statistics of a whole answer."""
    rows = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _rows(answer):
        rows.add_row(name, value)
    return rows


def _rows(answer: StreamedAnswer) -> Iterator[tuple[str, str]]:
    usage, report = answer.usage, answer.report
    if usage is not None:
        yield "tokens", f"{usage.completion_tokens} after a prompt of {usage.prompt_tokens}"
    yield "speed", _speed(answer)
    if report is not None:
        yield from _rows_of_report(report)
    if answer.finish == "length":
        yield "finish", "length: the answer was cut short"


def _rows_of_report(report: DsdReport) -> Iterator[tuple[str, str]]:
    yield "acceptance", "no guesses" if report.acceptance is None else f"{report.acceptance:.2f}"
    yield "guesses", ", ".join(f"{getattr(report, fate)} {fate}" for fate in FATES)
    if report.looked_up:
        yield "looked up", f"{report.looked_up} guessed by the verifier from the text"
    yield "window", f"{'none' if report.window is None else report.window} ({report.speculation})"
    yield "verdicts", f"{report.num_verdicts}, {report.tokens_per_verdict:.2f} tokens each"
    yield "served by", f"verifier {report.verifier or 'none'}, drafter {report.drafter or 'none'}"
    yield "seed", str(report.seed)


def _speed(answer: StreamedAnswer) -> str:
    """An answer in one piece has no TPOT; an empty one has no times."""
    if answer.ttft_ms is None:
        return "no tokens"
    per_token = f"{1000 / answer.tpot_ms:.1f} tokens/s (TPOT {answer.tpot_ms:.1f} ms), " if answer.tpot_ms else ""
    return f"{per_token}TTFT {answer.ttft_ms:.0f} ms"


@dataclass(slots=True)
class Totals:
    """Sums over the answers of a chat."""

    num_answers: int = 0
    num_tokens: int = 0
    num_matched: int = 0  # guesses equal to the target's token: accepted or late
    num_mismatched: int = 0

    def add(self, usage: Usage | None, report: DsdReport | None) -> None:
        """Adds one answer."""
        self.num_answers += 1
        self.num_tokens += usage.completion_tokens if usage else 0
        self.num_matched += report.accepted + report.late if report else 0
        self.num_mismatched += report.rejected if report else 0

    def __str__(self) -> str:
        num_judged = self.num_matched + self.num_mismatched
        acceptance = f", acceptance {self.num_matched / num_judged:.2f}" if num_judged else ""
        return f"this chat: {self.num_answers} whole answers, {self.num_tokens} tokens{acceptance}"
