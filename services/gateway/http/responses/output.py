"""The output items of a response, and the events of a stream that build them.

Invariant: items come one after the other; each begins, grows and ends before the next begins. The texts of an item's
deltas joined are its text. The items of a whole answer are those of its stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from services.gateway.formats.parts import CallArguments, CallBegin, Content, Part, Reasoning
from services.gateway.http.responses.models import (
    AnyContent,
    AnyOutput,
    CallArgumentsDelta,
    CallArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    Event,
    ItemStatus,
    OutputCall,
    OutputItemAdded,
    OutputItemDone,
    OutputMessage,
    OutputReasoning,
    OutputText,
    OutputTextDelta,
    OutputTextDone,
    ReasoningText,
    ReasoningTextDelta,
    ReasoningTextDone,
)


class _OpenItem(ABC):
    """An item that grows. Methods give its events, but for their numbers."""

    prefix: ClassVar[str]  # of ids

    def __init__(self, session_id: str, output_index: int, numbers: Iterator[int]) -> None:
        self.item_id = f"{self.prefix}_{session_id}_{output_index}"
        self._output_index = output_index
        self._numbers = numbers
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @abstractmethod
    def item(self, status: ItemStatus) -> AnyOutput: ...

    def begin(self) -> list[Event]:
        item = self.item("in_progress")
        return [OutputItemAdded(sequence_number=next(self._numbers), output_index=self._output_index, item=item)]

    def grow(self, text: str) -> list[Event]:
        self._texts.append(text)
        return [self._delta(text)]

    def end(self, status: ItemStatus) -> list[Event]:
        item = self.item(status)
        done = self._done()
        return [
            *done,
            OutputItemDone(sequence_number=next(self._numbers), output_index=self._output_index, item=item),
        ]

    @abstractmethod
    def _delta(self, text: str) -> Event: ...

    @abstractmethod
    def _done(self) -> list[Event]: ...

    def _next(self) -> dict[str, Any]:
        """The fields of an event inside the item, with the next number."""
        return {"sequence_number": next(self._numbers), "output_index": self._output_index, "item_id": self.item_id}


class _OpenContent(_OpenItem):
    """An item with one content part of text."""

    @abstractmethod
    def _part(self) -> AnyContent: ...

    @abstractmethod
    def _text_done(self) -> Event: ...

    def begin(self) -> list[Event]:
        return [*super().begin(), ContentPartAdded(**self._next(), part=self._part())]

    def _done(self) -> list[Event]:
        return [self._text_done(), ContentPartDone(**self._next(), part=self._part())]


class _OpenMessage(_OpenContent):
    prefix = "msg"

    def item(self, status: ItemStatus) -> OutputMessage:
        content = [] if status == "in_progress" else [self._part()]
        return OutputMessage(id=self.item_id, status=status, content=content)

    def _part(self) -> OutputText:
        return OutputText(self.text)

    def _delta(self, text: str) -> OutputTextDelta:
        return OutputTextDelta(**self._next(), delta=text)

    def _text_done(self) -> OutputTextDone:
        return OutputTextDone(**self._next(), text=self.text)


class _OpenReasoning(_OpenContent):
    prefix = "rs"

    def item(self, status: ItemStatus) -> OutputReasoning:
        content = [] if status == "in_progress" else [self._part()]
        return OutputReasoning(id=self.item_id, status=status, content=content)

    def _part(self) -> ReasoningText:
        return ReasoningText(self.text)

    def _delta(self, text: str) -> ReasoningTextDelta:
        return ReasoningTextDelta(**self._next(), delta=text)

    def _text_done(self) -> ReasoningTextDone:
        return ReasoningTextDone(**self._next(), text=self.text)


class _OpenCall(_OpenItem):
    prefix = "fc"

    def __init__(self, call_id: str, name: str, session_id: str, output_index: int, numbers: Iterator[int]) -> None:
        super().__init__(session_id, output_index, numbers)
        self._call_id = call_id
        self._name = name

    def item(self, status: ItemStatus) -> OutputCall:
        call_id, name = self._call_id, self._name
        return OutputCall(id=self.item_id, status=status, call_id=call_id, name=name, arguments=self.text)

    def _delta(self, text: str) -> CallArgumentsDelta:
        return CallArgumentsDelta(**self._next(), delta=text)

    def _done(self) -> list[Event]:
        return [CallArgumentsDone(**self._next(), arguments=self.text)]


class Output:
    """The items of one response, as the parts of its answer come. numbers: of events."""

    def __init__(self, session_id: str, numbers: Iterator[int]) -> None:
        self._session_id = session_id
        self._numbers = numbers
        self._ended: list[AnyOutput] = []
        self._open: _OpenItem | None = None

    @property
    def items(self) -> list[AnyOutput]:
        """Those so far; one that has not ended is incomplete."""
        return [*self._ended, *([self._open.item("incomplete")] if self._open else [])]

    def add(self, part: Part) -> list[Event]:
        """The events that bring the next part of the answer."""
        match part:
            case Content(text):
                return [*self._continue(_OpenMessage), *self._grow(text)]
            case Reasoning(text):
                return [*self._continue(_OpenReasoning), *self._grow(text)]
            case CallBegin(_, call_id, name):
                return self._begin(partial(_OpenCall, call_id, name))
            case CallArguments(_, text):
                return self._grow(text)

    def end(self, status: ItemStatus) -> list[Event]:
        """The events behind the last part. An answer without any is an empty message. status: of the last item."""
        begin = [] if self._ended or self._open else self._continue(_OpenMessage)
        return [*begin, *self._end(status)]

    def _continue(self, kind: type[_OpenItem]) -> list[Event]:
        """Begins an item, where none of its kind is open."""
        return [] if isinstance(self._open, kind) else self._begin(kind)

    def _begin(self, make: Callable[[str, int, Iterator[int]], _OpenItem]) -> list[Event]:
        ending = self._end("completed")
        self._open = make(self._session_id, len(self._ended), self._numbers)
        return [*ending, *self._open.begin()]

    def _grow(self, text: str) -> list[Event]:
        assert self._open is not None
        return self._open.grow(text)

    def _end(self, status: ItemStatus) -> list[Event]:
        if self._open is None:
            return []
        events = self._open.end(status)
        self._ended.append(self._open.item(status))
        self._open = None
        return events
