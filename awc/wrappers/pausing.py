"""Pauses drafting of a pair that gains nothing by it. A paused pair has window 0, target-only.

1. A pair pauses when its predicted gain (estimators/sliding.py), less what longer passes and unused guesses cost, is
   within the margin. After the pause it drafts again to measure its acceptance; each further pause in a row is twice as
   long (the back-off of Nightjar, arXiv 2512.22420). While even a good draft could not gain, the pause goes on.
2. No prediction knows what drafting costs a machine that drafter and verifier share. So where they do, and the
   predicted gain is below `doubtful`, the pair pauses on trial. Drafting resumes if the trial made tokens slower; the
   next trial comes later each time, at last after `longest`. Otherwise the trial becomes a pause. Speeds are means of
   1 / TPOT: guesses may overtake the verifier rarely, and then few fast reports make the gain. They are compared in
   the same situation: with as many sessions, and while prompts fill the passes or while none do (Nightjar, too, learns
   for each batch size).
3. A pause ends early when its reason has gone, as when 16 sessions became one: in PATIENCE reports in a row the
   predicted gain of the longest window is higher by `doubtful` than when the pair paused, or than 0 if it was below.
   If the pair then pauses again soon, that pause has its full length.

Invariant: between pauses the wrapped control sees every report and its choices stand. Its own choices of window 0 are
never counted against it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from awc.estimators.acceptance import CusumAcceptance
from awc.estimators.sliding import PRICE, is_measured, net_gain
from awc.estimators.verifier_cost import PerVerifier, VerifierCostLine
from awc.policy import PairControl, WindowChoice, WindowPolicy, decide_all
from shared.protocol.messages import MAX_WINDOW, PairReport

PATIENCE = 6  # reports in a row without a gain before a pause, or with a much higher one before it ends
HALF_LIFE = 192.0  # judged guesses after which a guess weighs half
PRIOR_RATE, PRIOR_NUM = 0.9, 4.0  # a-priori acceptance, and its weight in guesses; also that of a good draft
PROMPTS_FILL = 4.0  # tokens in a pass for each of its sessions, above which prompts make up most of it
PAUSED = WindowChoice(window=0, chunk=1, free_run=True)


@dataclass(frozen=True, slots=True)
class PauseSettings:
    """When and how long to pause. Lengths are in reports of a pair that has sessions and receives tokens, about four a
    second. Raises ValueError for bad parameters."""

    first: int = 40  # length of the first pause, and half of that of drafting after the first failed trial
    longest: int = 640  # upper bound of both
    compared: int = 8  # reports whose mean speed a trial compares; a third as many are skipped before
    margin: float = (
        0.03  # relative gain that drafting must promise, and loss of speed in a trial after which it resumes
    )
    doubtful: float = 0.2  # predicted gain below which a pair that shares a machine is tried; a rise that ends a pause

    def __post_init__(self) -> None:
        rules = {
            "1 <= first <= longest": 1 <= self.first <= self.longest,
            "compared >= 1": self.compared >= 1,
            "margin and doubtful >= 0": min(self.margin, self.doubtful) >= 0,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"{rule} must hold, got {self}")

    @property
    def before_trial(self) -> int:
        """Reports of drafting before the first trial."""
        return 3 * self.compared

    @property
    def after_failed(self) -> int:
        """Reports of drafting after the first failed trial. A trial is compared with the mean speed of at most as
        many."""
        return 2 * self.first

    @property
    def settling(self) -> int:
        """Skipped reports of a trial: their TPOT is an average over earlier verdicts."""
        return -(-self.compared // 3)


@dataclass(frozen=True, slots=True)
class PausingPolicy:
    """Pauses pairs of another policy while they gain nothing by drafting (back-off of Nightjar, arXiv 2512.22420)."""

    active: WindowPolicy
    settings: PauseSettings = field(default_factory=PauseSettings)
    price: float = PRICE
    costs: PerVerifier[VerifierCostLine] = field(default_factory=PerVerifier, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.active.name

    def for_pair(self) -> PausingPair:
        return PausingPair(self.active.for_pair(), self)

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
class PauseTrial:
    """A pause that is judged by speed: 1 / TPOT, tokens per millisecond."""

    settling: int  # reports still to skip
    ratios: list[float] = field(default_factory=list)  # speed / speed while drafting, of each compared report

    def observe(self, seen: PairReport, before: float | None) -> None:
        """before: speed while drafting in the situation of the report; None: not known, so it is not compared."""
        if seen.window:  # the decision has not reached the drafter yet
            return
        if self.settling:
            self.settling -= 1
        elif before is not None:
            self.ratios.append(1 / seen.tpot_ms / before)


def situation(seen: PairReport) -> int:
    """The same number for reports whose speeds can be compared."""
    return 2 * seen.num_sessions + (seen.pass_tokens > PROMPTS_FILL * seen.batch)


class PausingPair:
    """One pair under another control, drafting or paused."""

    def __init__(self, active: PairControl, policy: PausingPolicy) -> None:
        self.active = active
        settings = self._settings = policy.settings
        self._price, self._costs = policy.price, policy.costs
        self._cost: VerifierCostLine | None = None  # before the first report
        self._acceptance = CusumAcceptance(HALF_LIFE)
        self._is_paused = False
        self._left = 0  # reports of the pause
        self._length = settings.first  # of the next pause
        self._reason = 0.0  # predicted gain of the longest window when the pair paused, at least 0
        self._num_better = 0  # reports in a row with a much higher one
        self._unproven = 0  # reports of drafting until a pause may end early again
        self._trust = settings.after_failed  # reports of drafting after the next failed trial
        self._trusted = settings.before_trial  # reports until a trial may begin
        self._probing = 0  # reports until the gain counts again
        self._num_worthless = 0  # reports in a row without a gain
        self._speeds: deque[tuple[int, float]] = deque(maxlen=settings.after_failed)  # while drafting: situation, 1/ms
        self._tpot_ms = 0.0  # of the report before
        self._trial: PauseTrial | None = None

    def decide(self, seen: PairReport) -> WindowChoice:
        return PAUSED if self.stays_paused(seen) else self.check(seen, self.active.decide(seen))

    def stays_paused(self, seen: PairReport) -> bool:
        """Whether the pause outlasts this report."""
        self._acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        cost = self._cost = self._cost or self._costs.of(seen.verifier_id, VerifierCostLine)
        cost.observe(seen.pass_tokens, seen.pass_ms)
        if not self._is_paused or not is_measured(seen):
            return self._is_paused
        self._left -= 1
        if self._trial is not None:
            self._judge(self._trial, seen)
        if self._is_paused:
            is_over = self._left <= 0 and self._can_gain(seen)
            if is_over or self._has_lost_its_reason(seen):
                self._resume(self._settings.settling + self._settings.compared)
                self._probing = self._trusted
                self._unproven = 0 if is_over else self._settings.first
        return self._is_paused

    def _has_lost_its_reason(self, seen: PairReport) -> bool:
        """Whether the pause was decided in another situation."""
        is_better = self._gain(self._rate, seen, MAX_WINDOW) > self._reason + self._settings.doubtful
        self._num_better = self._num_better + 1 if is_better else 0
        return self._num_better >= PATIENCE and not self._unproven

    def check(self, seen: PairReport, choice: WindowChoice) -> WindowChoice:
        """The wrapped control's choice, or PAUSED when a pause begins."""
        has_written, self._tpot_ms = seen.tpot_ms != self._tpot_ms, seen.tpot_ms
        if not (is_measured(seen) and choice.window):
            return choice
        is_probing, self._probing = self._probing > 0, max(0, self._probing - 1)
        self._unproven = max(0, self._unproven - 1)
        gain = self._gain(self._rate, seen, choice.window)
        gains = gain > self._settings.margin
        can_gain = gains or self._can_gain(seen)
        self._num_worthless = 0 if gains or (is_probing and can_gain) else self._num_worthless + 1
        if self._num_worthless >= PATIENCE:
            self._note(seen)
            self._pause(self._length if can_gain else 0)
            return PAUSED
        if seen.window and has_written:
            self._speeds.append((situation(seen), 1 / seen.tpot_ms))
        self._trusted = max(0, self._trusted - 1)
        if seen.shares_machine and not self._trusted and gain < self._settings.doubtful and self._speed(seen):
            self._note(seen)
            self._begin_trial()
            return PAUSED
        return choice

    def _speed(self, seen: PairReport) -> float | None:
        """Mean while drafting in the situation of the report; None if too few reports had it."""
        alike = [speed for found, speed in self._speeds if found == situation(seen)]
        return fmean(alike) if len(alike) >= self._settings.compared else None

    def _note(self, seen: PairReport) -> None:
        """The reason of a pause that begins."""
        self._reason, self._num_better = max(0.0, self._gain(self._rate, seen, MAX_WINDOW)), 0

    @property
    def _rate(self) -> float:
        return self._acceptance.rate_with(PRIOR_RATE, PRIOR_NUM)

    def _can_gain(self, seen: PairReport) -> bool:
        """Whether a good draft would gain."""
        return self._gain(max(self._rate, PRIOR_RATE), seen, MAX_WINDOW) > self._settings.margin

    def _gain(self, acceptance: float, seen: PairReport, window: int) -> float:
        assert self._cost is not None  # made with the first report
        return net_gain(acceptance, seen, window, self._price, self._cost)

    def _pause(self, length: int) -> None:
        """`length` 0: until drafting can gain."""
        self._is_paused, self._left, self._trial = True, length, None
        if length:
            self._length = min(2 * self._length, self._settings.longest)

    def _begin_trial(self) -> None:
        self._is_paused = True
        self._left = self._settings.settling + self._settings.compared + self._settings.first
        self._trial = PauseTrial(self._settings.settling)

    def _judge(self, trial: PauseTrial, seen: PairReport) -> None:
        """Ends a trial that has compared enough reports, or too few in a whole pause."""
        trial.observe(seen, self._speed(seen))
        if len(trial.ratios) < self._settings.compared:
            if self._left <= 0:
                self._resume(self._trust)
        elif fmean(trial.ratios) * (1 + self._settings.margin) < 1:
            self._length = self._settings.first
            self._resume(self._trust)
            self._trust = min(4 * self._trust, self._settings.longest)
        else:
            self._trust = self._settings.after_failed
            self._pause(self._length)

    def _resume(self, trusted: int) -> None:
        """`trusted`: reports until a trial may begin."""
        self._is_paused, self._trial, self._trusted = False, None, trusted
        self._num_worthless = 0
        self._speeds.clear()
