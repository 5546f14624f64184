"""Rests where drafting is in vain: guesses that come late, or not at all, take the drafter's time and help nobody.

That is so where the target writes faster than the draft model guesses, for instance with many sessions on one drafter.
While a pair rests its window is 0, which is target-only serving. Whether it was right to rest is measured: where a
token takes longer than before, the rest is over at once. Else it lasts, and drafting is tried again after it, each time
after a rest twice as long, as Nightjar's bandit (arXiv 2512.22420) comes back to speculation. So what few guesses of
use are worth is seen on the machines at hand, whatever a model of them says: a drafter that shares the verifier's
machine, for one, slows it down.

Invariant: what the wrapped control sees and decides is what it would see and decide alone between two rests. While it
decides for a window of 0 by itself, nothing is held against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from awc.estimators.trial import Trial
from awc.policy import PairControl, WindowChoice, WindowPolicy, decide_all
from shared.protocol.messages import PairReport

LEAST = 3  # reports: the median of fewer is moved by an odd one, such as one in which prompts were read
RESTING = WindowChoice(window=0, chunk=1, free_run=True)


@dataclass(frozen=True, slots=True)
class Rests:
    """When to rest and for how long, in reports of a pair that has sessions (a drafter makes four in a second).

    A pair is looked at over `look` reports or more: until `least_judged` of its guesses were judged and it is clear
    whether more than `doubtful_share` of them are of use, right and in time, or `longest_look` are over. Clear is what
    lies `sure` standard deviations off. It rests when no more were of use. Those behind a wrong guess, which nobody
    judged, are not counted: a deep window has many of them, and pays. Where its sessions get a guess each in more time
    than a pass takes, so that the target outpaces the drafter, `outpaced_look`, `outpaced_judged`, `outpaced_share` and
    `look` stand for `look`, `least_judged`, `doubtful_share` and `longest_look`: there is little to lose by a rest that
    turns out to be a mistake, and a drafter that hardly comes to guess, or never, has few guesses to be judged.

    The rest was a mistake, and is over, when the median report of `compared`, behind the first `settling`, has a token
    take longer than the median one of the look, by `margin` of that at least, or that of n of these, 3 or more, by
    `hasty` / n more than that, unless the share of guesses of use was below `margin`, so that they can't have saved as
    much. Medians, because a report in which prompts were read is no measure. Then nothing is doubted for
    `trusted` reports, and for twice as long after each further mistake in a row. Where half as many sessions or fewer
    share the drafter in `light` reports in a row, the rest is put off until there are more. Reports between which no
    token was written, as before a first verdict, don't count. Raises ValueError for what can't work.
    """

    look: int = 8
    longest_look: int = 32
    least_judged: int = 32
    doubtful_share: float = 0.06
    outpaced_look: int = 4
    outpaced_judged: int = 8
    outpaced_share: float = 0.9
    sure: float = 2.0
    first: int = 20
    trusted: int = 24
    longest: int = 640  # of both
    light: int = 4
    settling: int = 3
    compared: int = 8
    margin: float = 0.02
    hasty: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.doubtful_share <= self.outpaced_share < 1:
            raise ValueError(
                f"doubtful_share {self.doubtful_share} up to outpaced_share {self.outpaced_share} must be 0 or more, "
                "and below 1"
            )
        if not 1 <= self.outpaced_look <= self.look <= self.longest_look:
            raise ValueError(
                f"outpaced_look {self.outpaced_look}, look {self.look} and longest_look {self.longest_look} must be 1 "
                "or more, none above the next"
            )
        if not 1 <= self.outpaced_judged <= self.least_judged:
            raise ValueError(
                f"outpaced_judged {self.outpaced_judged} must be 1 or more, and not above least_judged "
                f"{self.least_judged}"
            )
        if not (1 <= self.first <= self.longest and 1 <= self.trusted <= self.longest):
            raise ValueError(
                f"first {self.first} and trusted {self.trusted}, up to longest {self.longest}, must be 1 or more"
            )
        if self.light < 1:
            raise ValueError(f"light {self.light} must be 1 or more")
        if self.settling < 0 or self.compared < LEAST or not min(self.margin, self.hasty, self.sure) >= 0:
            raise ValueError(
                f"settling {self.settling}, margin {self.margin}, hasty {self.hasty} and sure {self.sure} must be 0 or "
                f"more, and compared {self.compared} {LEAST} or more"
            )


@dataclass(frozen=True, slots=True)
class RestingPolicy:
    """A policy whose pairs rest."""

    active: WindowPolicy
    rests: Rests = field(default_factory=Rests)

    @property
    def name(self) -> str:
        return self.active.name

    def for_pair(self) -> RestingPair:
        return RestingPair(self.active.for_pair(), self.rests)

    def decide_all(self, pairs: Sequence[RestingPair], reports: Sequence[PairReport]) -> list[WindowChoice]:
        """The choices of several pairs after a report of each."""
        choices = [RESTING] * len(pairs)
        awake = [number for number, pair in enumerate(pairs) if not pair.goes_on_resting(reports[number])]
        seen = [reports[number] for number in awake]
        found = decide_all(self.active, [pairs[number].active for number in awake], seen)
        for number, choice in zip(awake, found, strict=True):
            choices[number] = pairs[number].look(reports[number], choice)
        return choices


@dataclass(slots=True)
class Look:
    """What drafting brought over some reports."""

    num: int = 0
    judged: int = 0
    useful: int = 0
    sessions: int = 0
    num_outpaced: int = 0
    times: list[float] = field(default_factory=list)  # milliseconds per token

    def add(self, seen: PairReport) -> None:
        self.num += 1
        self.judged += seen.matched + seen.mismatched
        self.useful += max(0, seen.matched - seen.late)
        self.sessions += seen.num_sessions
        self.num_outpaced += 0 < seen.pass_ms < seen.draft_ms * seen.num_sessions
        if seen.tpot_ms:
            self.times.append(seen.tpot_ms)


class RestingPair:
    """One pair under another control, and its rests."""

    def __init__(self, active: PairControl, rests: Rests) -> None:
        self.active = active
        self._rests = rests
        self._length, self._trust = rests.first, rests.trusted  # of the next rest, of the time without doubts
        self._rest_left = self._trusted_left = 0
        self._look, self._before = Look(), Look()  # the one under way, and that which led to the last rest
        self._num_light = 0  # reports in a row with too few sessions for that rest
        self._trial: Trial | None = None  # of the rest under way, until it is over; None where it can't be a mistake
        self._tpot_ms = 0.0  # of the report before

    def decide(self, seen: PairReport) -> WindowChoice:
        return RESTING if self.goes_on_resting(seen) else self.look(seen, self.active.decide(seen))

    def goes_on_resting(self, seen: PairReport) -> bool:
        """Whether this report finds the pair at rest, and the next one will, too."""
        if self._rest_left and seen.num_sessions:
            is_light = 2 * seen.num_sessions * self._before.num <= self._before.sessions
            self._num_light = self._num_light + 1 if is_light else 0
            if not is_light:
                self._rest_left -= 1
                if self._is_mistake(seen):
                    self._rest_left = 0
                    self._length, self._trusted_left = self._rests.first, self._trust
                    self._trust = min(2 * self._trust, self._rests.longest)
        return self._rest_left > 0 and self._num_light < self._rests.light

    def look(self, seen: PairReport, choice: WindowChoice) -> WindowChoice:
        """What follows from a choice of the wrapped control: that, or a rest."""
        has_written, self._tpot_ms = seen.tpot_ms != self._tpot_ms, seen.tpot_ms
        if seen.num_sessions and has_written and choice.window and seen.window:  # both: what was drafted was asked for
            if self._trusted_left:
                self._trusted_left -= 1
            elif self._judge(seen):
                return RESTING
        return choice

    def _judge(self, seen: PairReport) -> bool:
        """Whether a rest begins."""
        look, rests = self._look, self._rests
        look.add(seen)
        is_outpaced = 2 * look.num_outpaced > look.num
        share = rests.outpaced_share if is_outpaced else rests.doubtful_share
        least = rests.outpaced_look if is_outpaced else rests.look
        longest = rests.look if is_outpaced else rests.longest_look
        least_judged = rests.outpaced_judged if is_outpaced else rests.least_judged
        doubtful = share * look.judged  # as many useful guesses are expected at the share
        off = rests.sure * (doubtful * (1 - share)) ** 0.5  # the binomial distribution's
        is_clear = look.judged >= least_judged and abs(look.useful - doubtful) >= off
        if look.num < least or (not is_clear and look.num < longest):
            return False
        self._look = Look()
        if look.useful > doubtful:
            self._length, self._trust = rests.first, rests.trusted
            return False
        self._before, self._num_light = look, 0
        self._rest_left = self._length
        self._length = min(2 * self._length, rests.longest)
        if look.useful > rests.margin * look.judged:
            self._trial = Trial(0, rests.settling, rests.compared)
        else:
            self._trial, self._trust = None, rests.trusted
        return True

    def _is_mistake(self, seen: PairReport) -> bool:
        """Asked of every report of a rest: whether the rest has turned out, just now, to cost time."""
        trial, before = self._trial, self._before.times
        if trial is None or not before:
            return False
        trial.observe(seen)
        is_over, num = trial.is_over, len(trial.times)
        if num >= LEAST:
            haste = 0.0 if is_over else self._rests.hasty / num
            if median(trial.times) > (1 + self._rests.margin + haste) * median(before):
                self._trial = None
                return True
        if is_over:
            self._trial = None
            self._trust = self._rests.trusted
        return False
