"""The records of ended sessions that the request inspector shows (docs/console.md).

Invariant: an owner has at most MAX_REQUESTS records and sees no others. All records together take at most MAX_BYTES;
where they would take more, the owner with the most bytes loses its oldest.
"""

from __future__ import annotations

from collections import OrderedDict

from services.gateway.inspector.journal import Record

MAX_REQUESTS = 100  # of one owner
MAX_BYTES = 16 << 20  # of all


class RecentRequests:
    """Records by owner. An owner is the cache scope of an API key, which depends on the key itself, not on its name."""

    def __init__(self) -> None:
        self._records: dict[str, OrderedDict[str, Record]] = {}  # the oldest first
        self._num_bytes: dict[str, int] = {}

    @property
    def num_bytes(self) -> int:
        return sum(self._num_bytes.values())

    def add(self, owner: str, record: Record) -> None:
        records = self._records.setdefault(owner, OrderedDict())
        records[record.session_id] = record
        self._num_bytes[owner] = self._num_bytes.get(owner, 0) + record.num_bytes
        if len(records) > MAX_REQUESTS:
            self._drop_oldest(owner)
        while self.num_bytes > MAX_BYTES:
            self._drop_oldest(max(self._num_bytes, key=self._num_bytes.__getitem__))

    def of(self, owner: str) -> list[Record]:
        """The owner's records, the newest first."""
        records = self._records.get(owner)
        return [] if records is None else list(reversed(records.values()))

    def find(self, owner: str, session_id: str) -> Record | None:
        records = self._records.get(owner)
        return None if records is None else records.get(session_id)

    def _drop_oldest(self, owner: str) -> None:
        _, record = self._records[owner].popitem(last=False)
        self._num_bytes[owner] -= record.num_bytes
        if not self._records[owner]:
            del self._records[owner], self._num_bytes[owner]
