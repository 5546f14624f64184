"""The target's folder: tokenizer, chat template, stop ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.gateway.text.chat_template import ChatMessage, ChatTemplate, Conversation, TemplateRefused
from services.gateway.text.tokenizer import UnusableTarget, load_tokenizer
from shared.protocol.messages import TokenIds
from tests.gateway.http.answers import order, target
from tests.gateway.tiny import SPECIAL, TEMPLATE, make_folder, make_tokenizer

HELLO = [ChatMessage("system", "Be brief."), ChatMessage("user", "hello")]
CONVERSATIONS = [
    HELLO,
    [
        ChatMessage("user", "naïve café 😀\n日本語"),
        ChatMessage("assistant", "oui"),
        ChatMessage("user", "  2 + 2 = ?  "),
    ],
    [ChatMessage("user", "a <b> & 'c' \"d\" {{ e }} {% f %}")],
]


def test_a_conversation_is_encoded_as_the_template_writes_it(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_folder(tmp_path))
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode_chat(Conversation(HELLO))
    assert ids == TokenIds(make_tokenizer().encode(text, add_special_tokens=False).ids)
    assert ids[0] == SPECIAL.index("<|im_start|>")


def test_the_template_file_wins_over_the_one_in_the_configuration(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}")
    ids = load_tokenizer(folder).encode_chat(Conversation([ChatMessage("user", "fox")]))
    assert (ids[0], ids[-1]) == (1, 2)


def test_of_several_named_templates_the_default_one_counts(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(folder).encode_chat(Conversation(HELLO))[0] == 1


def test_templates_find_what_the_field_gives_them() -> None:
    source = "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    source += "{% generation %}!{% endgeneration %}{{ strftime_now('%Y')[:2] }}{{ tools is none }}"
    text = ChatTemplate(source, {}).render(Conversation([ChatMessage("user", "<é>"), ChatMessage("user", "b")]))
    assert text == '{"role": "user", "content": "<é>"}!20True'


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{{ raise_exception('roles must alternate') }}", "^roles must alternate$"),
        ("{{ messages[7]['content'] + 'x' }}", "no element 7"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 / 0 }}", "^ZeroDivisionError: division by zero$"),
        ("{{ messages | dictsort }}", "^AttributeError: 'list' object"),
        ("{{ messages | sum }}", "^TypeError: unsupported operand"),
        ("{{ 'é'.encode('ascii') }}", "^UnicodeEncodeError: 'ascii' codec"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "^RecursionError: maximum recursion depth"),
    ],
)
def test_a_template_that_refuses_or_misbehaves_raises_one_error(source: str, told: str) -> None:
    with pytest.raises(TemplateRefused, match=told):
        ChatTemplate(source, {}).render(Conversation(HELLO))


def test_without_a_template_chat_is_refused_and_text_works(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(folder)
    with pytest.raises(TemplateRefused, match="no chat template"):
        tokenizer.encode_chat(Conversation(HELLO))
    assert tokenizer.encode_text("hello")


def test_stop_ids_come_from_the_first_file_that_names_them(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert load_tokenizer(folder).stop_ids == (2,)
    (folder / "generation_config.json").unlink()
    assert load_tokenizer(folder).stop_ids == (0, 2)
    (folder / "config.json").unlink()
    assert load_tokenizer(folder).stop_ids == (SPECIAL.index("<|im_end|>"),)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("generation_config.json", '{"eos_token_id": "x"}'),
        ("chat_template.jinja", "{% for %}"),
    ],
)
def test_a_folder_that_can_not_be_used_is_refused_by_the_file_at_fault(
    tmp_path: Path, name: str, content: str | None
) -> None:
    folder = make_folder(tmp_path)
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(UnusableTarget, match="template" if name.endswith("jinja") else name):
        load_tokenizer(folder)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_default_model_reads_a_conversation_as_transformers_does(
    default_models: Path, messages: list[ChatMessage]
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(default_models / "target")
    turns = [{"role": message.role, "content": message.content} for message in messages]
    expected = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    ours = load_tokenizer(default_models / "target")
    assert list(ours.encode_chat(Conversation(messages))) == list(expected)
    assert list(ours.encode_text(messages[0].content)) == theirs(messages[0].content)["input_ids"]


def test_the_default_model_s_text_comes_out_of_its_tokens_whole(default_models: Path) -> None:
    ours = load_tokenizer(default_models / "target")
    for text in ("2048 😀 日本語, naïve café\n\tdef f(x): return x**2", "🏳️‍🌈👩‍👩‍👧 ﷺ"):
        ids = ours.encode_text(text)
        answer = ours.answer(order(prompt_ids=[]), ())
        pieces = [*(answer.feed([target(token_id)]) for token_id in ids), answer.flush()]
        assert "".join(piece.text for piece in pieces) == text
