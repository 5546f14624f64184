"""A recording is read as it was written, and nothing else passes for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.data.recording import FORMAT, Header, MalformedRecording, Recorded, Recording, read_recording

HEADER = Header(target="t", draft="d", vocab_size=100, max_context=512, origin="by hand")
HEADER_LINE = f'{{"target":"t","draft":"d","vocab_size":100,"max_context":512,"origin":"by hand","format":"{FORMAT}"}}'
PROMPT_LINE = '{"prompt_ids":[1],"target_ids":[2],"draft_right":[true],"confidence":[0.5]}'


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    recording = Recording(
        HEADER,
        (
            Recorded((1, 2), (3, 4, 5), (True, False, True), (0.9, 0.25, 1.0)),
            Recorded((7,), (8,), (False,), (0.5,)),
        ),
    )
    recording.write(tmp_path / "file.jsonl")
    assert read_recording(tmp_path / "file.jsonl") == recording
    assert [each.acceptance for each in recording.prompts] == [2 / 3, 0]


def test_the_least_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(f"{HEADER_LINE}\n{PROMPT_LINE}\n", encoding="utf-8")
    assert read_recording(path) == Recording(HEADER, (Recorded((1,), (2,), (True,), (0.5,)),))


def test_bytes_that_are_no_text_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(HEADER_LINE.encode().replace(b'"origin":"', b'"origin":"\xff'))
    with pytest.raises(MalformedRecording, match=r":1: .*(?i:utf-8)"):
        read_recording(path)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "empty"),
        (["not json"], ":1"),
        ([HEADER_LINE], "no prompt"),
        ([HEADER_LINE.replace(FORMAT, "other"), PROMPT_LINE], "got other"),
        ([HEADER_LINE, PROMPT_LINE.replace("true", "1")], ":2"),
        ([HEADER_LINE, PROMPT_LINE, PROMPT_LINE.replace("0.5", "1.5")], ":3"),
        ([HEADER_LINE, PROMPT_LINE.replace("[true]", "[true, false]")], "must have equal lengths"),
        ([HEADER_LINE, PROMPT_LINE.replace("[1]", "[]")], "needs a prompt"),
        ([HEADER_LINE, PROMPT_LINE.replace("[2]", "[100]")], "token id 100 is not in 0..99"),
        ([HEADER_LINE, PROMPT_LINE[:-1] + ',"more":1}'], "more"),
    ],
)
def test_what_is_no_recording_is_refused_with_its_place(lines: list[str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(MalformedRecording) as raised:
        read_recording(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)
