"""Cards of drafts, read from files."""

from pathlib import Path

import pytest

from shared.data.draft_card import CARD, read_card


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"target":"\xff"}'], ids=["truncated", "empty", "no text"])
def test_a_file_that_is_no_card_is_refused_with_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / CARD).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path / CARD} is not the card of a draft"):
        read_card(tmp_path / CARD)
