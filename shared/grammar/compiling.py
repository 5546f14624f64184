"""Requests that wait until their grammar is compiled, which takes up to a second.

Invariant: one grammar at a time is compiled, off the event loop. A request that was forgotten meanwhile has no effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from shared.grammar.grammars import BadGrammar, Grammars
from shared.protocol.messages import Open, Speculate
from shared.protocol.refusal import Refused

AnyRequest = TypeVar("AnyRequest", Open, Speculate)


class CompileQueue(Generic[AnyRequest]):
    """go_on: takes a request whose grammar is compiled, with its sender. refuse: takes one whose grammar is not."""

    def __init__(
        self,
        grammars: Grammars,
        max_waiting: int,
        go_on: Callable[[str, AnyRequest], None],
        refuse: Callable[[str, AnyRequest, Refused], None],
    ) -> None:
        self._grammars = grammars
        self._max_waiting = max_waiting
        self._go_on: Callable[[str, AnyRequest], None] = go_on
        self._refuse: Callable[[str, AnyRequest, Refused], None] = refuse
        self._waiting: dict[str, tuple[str, AnyRequest]] = {}  # by session, with the sender
        self._added = asyncio.Event()

    def takes(self, sender: str, request: AnyRequest) -> bool:
        """Whether the request waits from now on; False if its grammar is compiled, or if it has none."""
        if request.grammar is None or self._grammars.has(request.grammar):
            return False
        owner, earlier = self._waiting.get(request.session_id, (sender, None))
        if earlier is None and len(self._waiting) >= self._max_waiting:
            self._refuse(sender, request, Refused("overloaded", "too many grammars wait", retryable=True))
        elif earlier is None or (owner == sender and request.term > earlier.term):
            self._waiting[request.session_id] = (sender, request)
            self._added.set()
        return True

    def forget(self, sender: str, session_id: str) -> None:
        """Call it when the sender closes the session."""
        if self._waiting.get(session_id, ("",))[0] == sender:
            del self._waiting[session_id]

    async def run(self) -> None:
        """Compiles until cancelled."""
        while True:
            self._added.clear()
            while self._waiting:
                session_id, (_, request) = next(iter(self._waiting.items()))
                refusal = await self._compile(request)
                sender, request = self._waiting.pop(session_id, ("", request))
                if sender and refusal is None:
                    self._go_on(sender, request)
                elif sender and refusal is not None:
                    self._refuse(sender, request, refusal)
            await self._added.wait()

    async def _compile(self, request: AnyRequest) -> Refused | None:
        assert request.grammar is not None
        try:
            await asyncio.to_thread(self._grammars.start, request.grammar)
        except BadGrammar as error:
            return Refused("bad_request", f"grammar: {error}", retryable=False)
        return None
