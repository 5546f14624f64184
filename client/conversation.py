"""A conversation as the server gets to see it.

Invariant: turns alternate between user and assistant, so that every chat template takes them; a question whose answer
never began is taken back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from client.wire import Message


@dataclass(slots=True)
class Conversation:
    """The system message and the turns so far."""

    system: str = ""
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """What a request carries."""
        return [*([Message("system", self.system)] if self.system else []), *self.turns]

    def ask(self, text: str) -> None:
        """The user's next turn; `answer` or `take_back` must follow."""
        self.turns.append(Message("user", text))

    def answer(self, text: str) -> None:
        """The assistant's turn, perhaps cut short."""
        self.turns.append(Message("assistant", text))

    def take_back(self) -> None:
        """Forgets the question that has no answer."""
        del self.turns[-1]

    def reset(self) -> None:
        """Forgets the turns; the system message stays."""
        self.turns.clear()

    def transcript(self) -> str:
        """The conversation as Markdown."""
        return "\n\n".join(f"## {message.role}\n\n{message.content.strip()}" for message in self.messages) + "\n"
