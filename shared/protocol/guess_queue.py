"""A session's guesses at its verifier: those that wait for a pass, and the fates of all.

Invariant: each guess received gets exactly one fate. Guesses are compared with the text and never change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.protocol.guesses import MAX_EPOCH, Fates, Survival, common_prefix
from shared.protocol.messages import MAX_WINDOW, Draft, TokenIds


@dataclass(slots=True)
class GuessQueue:
    """Pending guesses for the positions `base`, base + 1, ...

    In its methods `text` holds the committed tokens of the session, the prompt included, and `length` is their number.
    """

    epoch: int = 0  # guesses of lower epochs are discarded
    base: int = 0
    pending: list[int] = field(default_factory=list)
    fates: Fates = field(default_factory=Fates)
    survival: Survival = field(default_factory=Survival)
    _received: int = 0  # a bit for each position: its guess of this epoch was counted or waits
    _judged: int = 0  # guesses of this term before this position are not judged (again)

    @property
    def end(self) -> int:
        """The position after the pending guesses."""
        return self.base + len(self.pending)

    def restart(self, length: int) -> None:
        """Begins a term."""
        self.clear(length)
        self.epoch = self._received = 0
        self._judged = length

    def clear(self, length: int) -> None:
        """Discards the pending guesses."""
        self.discard(len(self.pending))
        self.pending, self.base = [], length

    def discard(self, num: int) -> None:
        self.fates.discarded += num

    def raise_epoch(self, length: int) -> None:
        """Discards the pending guesses and those that follow them."""
        self.clear(length)
        self.epoch = min(self.epoch + 1, MAX_EPOCH)
        self._received = 0

    # --- drafts ----------------------------------------------------------------------------------------------------

    def receive(self, draft: Draft, text: Sequence[int], limit: int) -> bool:
        """Takes the guesses of a draft, up to the length `limit`. Returns whether the draft must be answered."""
        num, length = len(draft.token_ids), len(text)
        if draft.epoch < self.epoch:
            self.discard(num)
            return True
        if draft.epoch > self.epoch:
            self.clear(length)
            self.epoch, self._received = draft.epoch, 0
        if draft.base > self.end:
            self.discard(num)
            self.raise_epoch(length)
            return True
        is_new = self._num_new(draft.base, draft.base + num) > 0
        if self._compare(draft, text):
            self._extend(draft, length, limit)
        return not is_new or draft.base < length

    def _compare(self, draft: Draft, text: Sequence[int]) -> bool:
        """Compares guesses with tokens committed before; returns False if one differs.

        Such guesses may repeat a verdict. So they don't count for survival, and in a term each position is judged once.
        """
        end = draft.base + len(draft.token_ids)
        fixed = text[draft.base : end]
        equal_end = draft.base + common_prefix(draft.token_ids, fixed)
        num_new = self._num_new(draft.base, equal_end)
        num_late = self._num_new(max(draft.base, self._judged), equal_end)
        self.fates.late += num_late
        self.discard(num_new - num_late)
        if equal_end == draft.base + len(fixed):
            self._note_judged(draft.base, len(fixed))
            return True
        num_wrong = self._num_new(equal_end, end)
        num_rejected = int(num_wrong > 0 and equal_end >= self._judged)
        self.fates.rejected += num_rejected
        self.discard(num_wrong - num_rejected)
        self._note_judged(equal_end, 1)
        self.raise_epoch(len(text))
        return False

    def _extend(self, draft: Draft, length: int, limit: int) -> None:
        """Appends the guesses after the pending ones, up to `limit` and MAX_WINDOW."""
        room = min(limit, length + MAX_WINDOW) - self.end
        behind = draft.token_ids[max(0, self.end - draft.base) :]
        self.pending.extend(behind[: max(0, room)])
        num = len(draft.token_ids)
        self.discard(self._num_new(max(draft.base, self.end), draft.base + num))
        self._received |= ((1 << num) - 1) << draft.base

    def _num_new(self, start: int, end: int) -> int:
        """For how many of these positions no guess of this epoch has come before. An earlier one may come later: it was
        overtaken, or the verifier went on without it."""
        return ((1 << max(0, end - start)) - 1 & ~(self._received >> start)).bit_count()

    # --- passes ----------------------------------------------------------------------------------------------------

    def take(self, num: int, length: int) -> TokenIds:
        """Removes the first `num` guesses for a pass over `length` committed tokens."""
        guesses = TokenIds(self.pending[:num])
        self.pending = self.pending[len(guesses) :]
        self.base = length + len(guesses)
        return guesses

    def put_back(self, guesses: Sequence[int], base: int) -> None:
        """Returns guesses that a pass did not judge."""
        self.pending, self.base = [*guesses, *self.pending], base

    def judge(self, base: int, num: int, accepted: int, num_committed: int) -> None:
        """Counts the `num` guesses of a pass that committed `num_committed` tokens from `base` on."""
        judged = min(num, num_committed)
        self._note_judged(base, judged)
        self.fates.accepted += accepted
        self.fates.rejected += judged - accepted
        self.discard(num - judged)
        self.survival.observe(accepted, mismatched=judged > accepted)

    def settle(self, text: Sequence[int]) -> None:
        """Compares guesses that arrived during a pass with what it committed."""
        fixed = text[self.base :]
        equal = common_prefix(self.pending, fixed)
        is_wrong = equal < min(len(self.pending), len(fixed))
        self._note_judged(self.base, equal + is_wrong)
        self.fates.late += equal
        self.survival.observe(equal, mismatched=is_wrong)
        del self.pending[: equal + is_wrong]
        self.base += equal
        if is_wrong:
            self.fates.rejected += 1
            self.raise_epoch(len(text))
        elif not self.pending:
            self.base = len(text)

    def _note_judged(self, base: int, num: int) -> None:
        if num:
            self._judged = max(self._judged, base + num)
