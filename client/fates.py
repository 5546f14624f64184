"""How tokens look on a terminal, by their fate (docs/glossary.md).

Invariant: every fate differs from the others without colour as well (plain, underlined, bold, dim), for those who see
no colours and for terminals that show none; and no text of a server reaches a terminal with control characters in it.
"""

from __future__ import annotations

from rich.style import Style
from rich.text import Text

from client.wire import Piece

MEANINGS = {
    "accepted": "a guess that was right",
    "recovered": "the target's own token in place of a wrong guess",
    "bonus": "the target's own token behind right guesses",
    "target": "the target's own token, nobody guessed in time",
}
STYLES = {
    "accepted": Style(color="green"),
    "recovered": Style(color="yellow", underline=True),
    "bonus": Style(color="cyan", bold=True),
    "target": Style(dim=True),
}
REPLACEMENT = "\ufffd"
CONTROLS = {number: REPLACEMENT for number in (*range(32), *range(127, 160)) if chr(number) not in "\n\t"}


def printable(text: str) -> str:
    """The text with what would steer a terminal replaced; line breaks and tabs stay."""
    return text.replace("\r\n", "\n").translate(CONTROLS)


def styled(piece: Piece) -> Text:
    """A piece as it is shown; plain where its fate is not known."""
    return Text(printable(piece.text), STYLES.get(piece.fate or "", Style.null()))


def legend() -> Text:
    """One line for each fate, in its own style."""
    lines = [Text.assemble("  ", (f"{fate:<10}", STYLES[fate]), meaning) for fate, meaning in MEANINGS.items()]
    return Text("\n").join([Text("Tokens by their fate:"), *lines])
