"""A conversation as it is sent to the server.

Invariant: turns alternate between user and assistant, as chat templates require. A question whose answer never began is
removed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from client.wire import ChatMessage


@dataclass(slots=True)
class Conversation:
    """The system message and the turns so far."""

    system: str = ""
    turns: list[ChatMessage] = field(default_factory=list)

    @property
    def messages(self) -> list[ChatMessage]:
        """The messages of the next request."""
        return [*([ChatMessage("system", self.system)] if self.system else []), *self.turns]

    def ask(self, text: str) -> None:
        """The user's next turn; `answer` or `take_back` must follow."""
        self.turns.append(ChatMessage("user", text))

    def answer(self, text: str) -> None:
        """The assistant's turn, perhaps cut short."""
        self.turns.append(ChatMessage("assistant", text))

    def take_back(self) -> None:
        """Removes the question that got no answer."""
        del self.turns[-1]

    def reset(self) -> None:
        """Removes the turns; the system message stays."""
        self.turns.clear()

    def transcript(self) -> str:
        """The conversation as Markdown."""
        return "\n\n".join(f"## {message.role}\n\n{message.content.strip()}" for message in self.messages) + "\n"
