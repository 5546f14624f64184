"""Pauses drafting of a pair whose guesses rarely help.

Guesses help when they are right and in time. They come late where the target writes faster than the draft model
guesses, for instance when many sessions share a drafter. A paused pair has window 0, target-only.

1. Check a pair until it is clear whether the share of helpful guesses, (matched - late) / (matched + mismatched),
   exceeds the required share, or for a longest number of reports (DraftingCheck).
2. If it does not exceed it, pause for `first` reports; each further pause in a row is twice as long (the back-off of
   Nightjar, arXiv 2512.22420).
3. Resume early if TPOT rises during the pause: by 2 % after 8 reports, by 8.7 % after 3 (defaults). Then skip checks
   for `trusted` reports, twice as long after each further mistake in a row. A pair whose share of helpful guesses is
   2 % or less can not have saved as much; its pause is never a mistake.
4. Suspend the pause while half as many sessions or fewer share the drafter.

Invariant: between pauses the wrapped control sees every report and its choices stand. Its own choices of window 0 are
never counted against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from awc.estimators.trial import Trial
from awc.estimators.verifier_cost import VerifierCostLine
from awc.policy import PairControl, WindowChoice, WindowPolicy, decide_all
from shared.protocol.messages import PairReport

LEAST_COMPARED = 3  # reports of a median; in one report prompts may be read
PAUSED = WindowChoice(window=0, chunk=1, free_run=True)


@dataclass(frozen=True, slots=True)
class PauseSettings:
    """When and how long to pause. Lengths are in reports of a pair that has sessions and receives tokens, about four a
    second.

    A drafter is outpaced when a session's guesses come hardly faster than the target's own tokens. It has little to
    lose by a pause and makes few guesses to judge, so it has limits of its own. Discarded guesses do not count: a deep
    window has many, and pays. Raises ValueError for bad parameters.
    """

    check: int = 8  # reports of a check, at least
    longest_check: int = 32  # reports of a check, at most
    least_judged: int = 32  # judged guesses of a clear result
    doubtful_share: float = 0.06  # share of helpful guesses up to which a pair pauses
    outpaced_check: int = 4  # the same for an outpaced drafter, whose check takes at most `check` reports
    outpaced_judged: int = 8
    outpaced_share: float = 0.9
    sure: float = 2.0  # standard deviations between the share and a clear result
    first: int = 20  # length of the first pause
    trusted: int = 24  # reports without checks after the first mistake
    longest: int = 640  # upper bound of both
    light: int = 4  # reports in a row with half the sessions that suspend a pause
    settling: int = 3  # skipped reports of a pause
    compared: int = 8  # compared reports of a pause
    margin: float = 0.02  # relative rise of the median TPOT that makes a pause a mistake
    hasty: float = 0.2  # after n < compared reports the rise must be margin + hasty / n

    def __post_init__(self) -> None:
        checks = [1, self.outpaced_check, self.check, self.longest_check]
        lengths = sorted((self.first, self.trusted))
        rules = {
            "0 <= doubtful_share <= outpaced_share < 1": 0 <= self.doubtful_share <= self.outpaced_share < 1,
            "1 <= outpaced_check <= check <= longest_check": checks == sorted(checks),
            "1 <= outpaced_judged <= least_judged": 1 <= self.outpaced_judged <= self.least_judged,
            "1 <= first and trusted <= longest": lengths[0] >= 1 and lengths[1] <= self.longest,
            f"light >= 1 and compared >= {LEAST_COMPARED}": self.light >= 1 and self.compared >= LEAST_COMPARED,
            "settling, margin, hasty and sure >= 0": min(self.settling, self.margin, self.hasty, self.sure) >= 0,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"{rule} must hold, got {self}")


@dataclass(frozen=True, slots=True)
class PausingPolicy:
    """Pauses pairs of another policy while their guesses rarely help (back-off of Nightjar, arXiv 2512.22420)."""

    active: WindowPolicy
    settings: PauseSettings = field(default_factory=PauseSettings)

    @property
    def name(self) -> str:
        return self.active.name

    def for_pair(self) -> PausingPair:
        return PausingPair(self.active.for_pair(), self.settings)

    def decide_all(self, pairs: Sequence[PausingPair], reports: Sequence[PairReport]) -> list[WindowChoice]:
        """What `decide` says of each pair."""
        choices = [PAUSED] * len(pairs)
        drafting = [number for number, pair in enumerate(pairs) if not pair.stays_paused(reports[number])]
        seen = [reports[number] for number in drafting]
        found = decide_all(self.active, [pairs[number].active for number in drafting], seen)
        for number, choice in zip(drafting, found, strict=True):
            choices[number] = pairs[number].check(reports[number], choice)
        return choices


@dataclass(slots=True)
class DraftingCheck:
    """What drafting achieved over some reports."""

    num: int = 0
    judged: int = 0
    helpful: int = 0
    sessions: int = 0
    num_outpaced: int = 0
    times: list[float] = field(default_factory=list)  # TPOT, ms

    def add(self, seen: PairReport, *, is_outpaced: bool) -> None:
        self.num += 1
        self.judged += seen.matched + seen.mismatched
        self.helpful += max(0, seen.matched - seen.late)
        self.sessions += seen.num_sessions
        self.num_outpaced += is_outpaced
        if seen.tpot_ms:
            self.times.append(seen.tpot_ms)


class PausingPair:
    """One pair under another control, drafting or paused."""

    def __init__(self, active: PairControl, settings: PauseSettings) -> None:
        self.active = active
        self._settings = settings
        self._length, self._trust = settings.first, settings.trusted  # of the next pause, and after the next mistake
        self._pause_left = self._trusted_left = 0  # reports
        self._check, self._before = DraftingCheck(), DraftingCheck()  # the current one, and that before the pause
        self._num_light = 0  # reports in a row with half the sessions
        self._trial: Trial | None = None  # of the pause; None once decided, or when it can not be a mistake
        self._tpot_ms = 0.0  # of the report before
        self._cost = VerifierCostLine()

    def decide(self, seen: PairReport) -> WindowChoice:
        return PAUSED if self.stays_paused(seen) else self.check(seen, self.active.decide(seen))

    def stays_paused(self, seen: PairReport) -> bool:
        """Whether the pause outlasts this report."""
        if self._pause_left and seen.num_sessions:
            is_light = 2 * seen.num_sessions * self._before.num <= self._before.sessions
            self._num_light = self._num_light + 1 if is_light else 0
            if not is_light:
                self._pause_left -= 1
                if self._is_mistake(seen):
                    self._pause_left = 0
                    self._length, self._trusted_left = self._settings.first, self._trust
                    self._trust = min(2 * self._trust, self._settings.longest)
        return self._pause_left > 0 and self._num_light < self._settings.light

    def check(self, seen: PairReport, choice: WindowChoice) -> WindowChoice:
        """The wrapped control's choice, or PAUSED when a pause begins."""
        self._cost.observe(seen.pass_tokens, seen.pass_ms)
        has_written, self._tpot_ms = seen.tpot_ms != self._tpot_ms, seen.tpot_ms
        if seen.num_sessions and has_written and choice.window and seen.window:  # drafting before and after
            if self._trusted_left:
                self._trusted_left -= 1
            elif self._begins_pause(seen):
                return PAUSED
        return choice

    def _begins_pause(self, seen: PairReport) -> bool:
        check, settings = self._check, self._settings
        check.add(seen, is_outpaced=self._cost.is_outpaced(seen))
        is_outpaced = 2 * check.num_outpaced > check.num
        share = settings.outpaced_share if is_outpaced else settings.doubtful_share
        least = settings.outpaced_check if is_outpaced else settings.check
        longest = settings.check if is_outpaced else settings.longest_check
        least_judged = settings.outpaced_judged if is_outpaced else settings.least_judged
        expected = share * check.judged  # helpful guesses at the share
        deviation = settings.sure * (expected * (1 - share)) ** 0.5  # binomial
        is_clear = check.judged >= least_judged and abs(check.helpful - expected) >= deviation
        if check.num < least or (not is_clear and check.num < longest):
            return False
        self._check = DraftingCheck()
        if check.helpful > expected:
            self._length, self._trust = settings.first, settings.trusted
            return False
        self._before, self._num_light = check, 0
        self._pause_left = self._length
        self._length = min(2 * self._length, settings.longest)
        if check.helpful > settings.margin * check.judged:
            self._trial = Trial(0, settings.settling, settings.compared)
        else:
            self._trial, self._trust = None, settings.trusted
        return True

    def _is_mistake(self, seen: PairReport) -> bool:
        """Whether this report of a pause shows that it makes tokens slower."""
        trial, before = self._trial, self._before.times
        if trial is None or not before:
            return False
        trial.observe(seen)
        is_over, num = trial.is_over, len(trial.times)
        if num >= LEAST_COMPARED:
            haste = 0.0 if is_over else self._settings.hasty / num
            if median(trial.times) > (1 + self._settings.margin + haste) * median(before):
                self._trial = None
                return True
        if is_over:
            self._trial = None
            self._trust = self._settings.trusted
        return False
