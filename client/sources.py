"""Styles of tokens on a terminal, by their source (docs/api.md, "Sources").

Invariant: the styles differ without colour too (plain, underlined, bold, both, dim), for readers and terminals without
colours. Text of a server never reaches a terminal with control characters.
"""

from __future__ import annotations

from rich.style import Style
from rich.text import Text

from client.wire import TokenPiece

MEANINGS = {
    "accepted": "a correct guess",
    "lookup": "a correct guess of the verifier's own, from the text",
    "recovered": "the target's own token in place of a wrong guess",
    "bonus": "the target's own token behind correct guesses",
    "target": "the target's own token, without a guess in time",
}
STYLES = {
    "accepted": Style(color="green"),
    "lookup": Style(color="green", bold=True, underline=True),
    "recovered": Style(color="yellow", underline=True),
    "bonus": Style(color="cyan", bold=True),
    "target": Style(dim=True),
}
REPLACEMENT = "\ufffd"
CONTROLS = {number: REPLACEMENT for number in (*range(32), *range(127, 160)) if chr(number) not in "\n\t"}


def printable(text: str) -> str:
    """The text with control characters replaced, except line breaks and tabs."""
    return text.replace("\r\n", "\n").translate(CONTROLS)


def styled(piece: TokenPiece) -> Text:
    """A piece in the style of its source; plain if the source is unknown."""
    return Text(printable(piece.text), STYLES.get(piece.source or "", Style.null()))


def legend() -> Text:
    """One line per source, in its style."""
    lines = [Text.assemble("  ", (f"{source:<10}", STYLES[source]), meaning) for source, meaning in MEANINGS.items()]
    return Text("\n").join([Text("Tokens by their source:"), *lines])
