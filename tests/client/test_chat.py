"""`dsd chat` on a terminal, as its user sees it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from client.sources import MEANINGS
from shared.protocol.messages import Open
from tests.client.conftest import OtherServer, address, chunk, decide, told
from tests.client.terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, Look, Terminal, terminal
from tests.gateway.conftest import TOKENIZER, World
from tests.gateway.fakes import CONTEXT

pytestmark = pytest.mark.timeout(60)

SOURCES = [
    told(("Ada ", "accepted"), ("Eve ", "lookup"), ("Bob ", "recovered")),
    told(("Cid ", "bonus"), ("Dan.", "target"), window=5),
]


async def say(user: Terminal, text: str) -> None:
    user.type(text + ENTER)


def prompts(world: World) -> list[str]:
    """What the verifier was asked, as text."""
    opened = [message for peer in world.peers for message in peer.of(Open)]
    return [TOKENIZER.decode(list(message.prompt_ids), skip_special_tokens=False) for message in opened]


async def test_a_conversation_keeps_its_turns_until_it_is_reset(world: World) -> None:
    await world.verifier()
    await world.drafter()
    world.answer = "hello world"
    async with terminal("chat", "--system", "Obey.", url=address(world)) as user:
        await user.waits()
        await say(user, "first")
        await user.shows("hello world")
        await user.waits()
        await say(user, "second")
        await user.until(lambda: user.text.count("hello world") == 2, "second answer")
        await user.waits()
        await say(user, "/reset")
        await user.shows("The conversation is forgotten")
        await say(user, "third")
        await user.until(lambda: user.text.count("hello world") == 3, "third answer")
        await user.waits()
        await say(user, "/quit")
        assert await user.ends() == 0
    first, second, third = prompts(world)
    assert [text.count("user\n") for text in (first, second, third)] == [1, 2, 1]
    assert "assistant\nhello world<|im_end|>" in second
    assert "third" in third
    assert all(text.startswith("<|im_start|>system\nObey.") for text in (first, second, third))
    await world.no_session_is_left()


async def test_every_source_has_a_look_of_its_own_and_a_line_in_the_legend(other: OtherServer) -> None:
    other.events = [*SOURCES, "[DONE]"]
    async with terminal("chat", url=other.url) as user:
        await user.waits()
        await say(user, "/help")
        for meaning in MEANINGS.values():
            await user.shows(meaning)
        legend = {source: user.look(source) for source in MEANINGS}
        await say(user, "hi")
        await user.shows("Ada Eve Bob Cid Dan.")
        await user.waits()
        assert [user.look(name) for name in ("Ada", "Eve", "Bob", "Cid", "Dan.")] == list(legend.values())
        assert legend["accepted"] == Look("green", False, False)
        assert len(set(legend.values())) == len(MEANINGS)
        user.type(CTRL_D)
        assert await user.ends() == 0


async def test_without_colours_the_looks_still_differ(other: OtherServer) -> None:
    other.events = [*SOURCES, "[DONE]"]
    async with terminal("chat", url=other.url, NO_COLOR="1") as user:
        await user.waits()
        await say(user, "hi")
        await user.shows("Ada Eve Bob Cid Dan.")
        await user.waits()
        assert user.look("Ada") == Look("default", False, False)
        assert user.look("Eve") == Look("default", True, True)
        assert user.look("Bob") == Look("default", False, True)
        assert user.look("Cid") == Look("default", True, False)


async def test_figures_stand_under_the_answer(other: OtherServer) -> None:
    other.events = [*SOURCES, "[DONE]"]
    async with terminal("chat", url=other.url) as user:
        await user.waits()
        await say(user, "hi")
        await user.shows("window 5 · acceptance 0.50")
        await user.shows("5 tokens")


async def test_a_server_that_knows_no_sources_is_shown_plainly(other: OtherServer) -> None:
    other.events = [chunk("Hello "), chunk("there."), "[DONE]"]
    other.refuses_fields = {"dsd"}
    async with terminal("chat", url=other.url) as user:
        await user.waits()
        for number in (1, 2):
            await say(user, "hi")
            await user.until(lambda: user.text.count("Hello there.") == number, "answer")  # noqa: B023
            await user.waits()
        assert user.look("Hello there.") == Look("default", False, False)
    assert ["dsd" in body for body in other.heard] == [True, False, False]


async def test_ctrl_c_stops_an_answer_and_keeps_the_chat(world: World) -> None:
    verifier = await world.verifier(pass_s=0.05)
    world.answer = "word " * 100
    async with terminal("chat", url=address(world)) as user:
        await user.waits()
        await say(user, "go")
        await user.shows("word word")
        user.type(CTRL_C)
        await user.shows("stopped")
        await user.waits()
        await world.no_session_is_left()
        assert verifier.num_cut_short == 1
        world.answer = "short"
        await say(user, "again")
        await user.shows("short")
        user.type(CTRL_C)
        await user.waits()
    assert "assistant\nword word" in prompts(world)[1], "what was shown of the answer is part of the conversation"


async def test_pasted_and_typed_line_breaks_are_one_message(world: World) -> None:
    await world.verifier()
    async with terminal("chat", url=address(world)) as user:
        await user.waits()
        user.paste("one\ntwo\r\nthree")
        user.type(ALT_ENTER + "four" + ENTER)
        await user.shows(world.answer[:20])
    assert "user\none\ntwo\nthree\nfour<|im_end|>" in prompts(world)[0]


async def test_errors_are_told_and_the_chat_goes_on(world: World) -> None:
    async with terminal("chat", url=address(world)) as user:
        await user.waits()
        await say(user, "/frobnicate now")
        await user.shows("Unknown command /frobnicate: /help lists the commands")
        await say(user, "hi")
        await user.shows("(status 503)")
        await world.verifier()
        await user.waits()
        user.paste("x" * 4 * CONTEXT)
        user.type(ENTER)
        await user.shows("The conversation is too long: /save FILE keeps it, /reset begins a new one.")
        await user.waits()
        await say(user, "shorter")
        await user.shows(world.answer[:20])
    assert len(prompts(world)) == 1
    assert prompts(world)[0].count("user\n") == 1, "refused messages are not part of the conversation"


async def test_commands_change_and_keep_the_conversation(world: World, tmp_path: Path) -> None:
    await world.verifier()
    world.answer = "hello world"
    file = tmp_path / "talk.md"
    async with terminal("chat", url=address(world)) as user:
        await user.waits()
        for entry, word in (
            ("/system Be brief.", "The system message is set"),
            ("hi", "hello world"),
            ("/model", "* tiny"),
            ("/model wrong", "Unknown model wrong"),
            ("/stats", "this chat: 1 whole answers"),
            ("/save", "/save needs a file name: /save FILE"),
            (f"/save {file}", f"Written to {file}"),
            (f"/save {file}", "Can't write"),
            ("/system", "The system message is removed"),
        ):
            await say(user, entry)
            await user.shows(word)
            await user.waits()
    turns = ("## system", "Be brief.", "## user", "hi", "## assistant", "hello world")
    assert file.read_text(encoding="utf-8") == "\n\n".join(turns) + "\n"


async def test_a_file_that_can_not_be_named_is_told_and_the_chat_goes_on(other: OtherServer) -> None:
    other.events = [chunk("Hello."), "[DONE]"]
    async with terminal("chat", url=other.url) as user:
        await user.waits()
        for name, why in (("~nosuchuser/x", "home directory"), ("/nowhere/a\0b", "null byte")):
            user.paste(f"/save {name}")
            user.type(ENTER)
            await user.shows(why)
            await user.waits()
        assert user.text.count("Can't write ") == 2
        await say(user, "hi")
        await user.shows("Hello.")


async def test_an_entry_that_is_not_utf_8_is_told_and_the_chat_goes_on(other: OtherServer) -> None:
    other.events = [chunk("Hello."), "[DONE]"]
    async with terminal("chat", url=other.url) as user:
        await user.waits()
        for number, entry in enumerate(("caf\udce9", "/system caf\udce9"), 1):
            await say(user, entry)
            await user.until(lambda: user.text.count("The text is not UTF-8") == number, "complaint")  # noqa: B023
            await user.waits()
        await say(user, "hi")
        await user.shows("Hello.")
    assert [body["messages"] for body in other.heard] == [[{"role": "user", "content": "hi"}]]


async def test_a_server_steers_no_terminal(other: OtherServer) -> None:
    other.events = [chunk("\x1b[2J\x1b]0;title\x07safe"), "[DONE]"]
    async with terminal("chat", url=other.url) as user:
        await user.waits()
        await say(user, "hi")
        await user.shows("\ufffd[2J\ufffd]0;title\ufffdsafe")
        await user.shows("/help lists commands")


@pytest.mark.parametrize("command", ["chat", "ask"])
async def test_where_nobody_answers_it_ends_with_status_3(command: str) -> None:
    async with terminal(command, *(["hi"] if command == "ask" else []), url="http://127.0.0.1:1") as user:
        assert await user.ends() == 3
        await user.shows("Can't connect to http://127.0.0.1:1: Connection refused")


async def test_a_gateway_tells_sources_and_window_while_an_answer_grows(world: World) -> None:
    verifier, drafter = await world.verifier(pass_s=0.05), await world.drafter()
    world.answer = "hello " * 60
    await decide(world, drafter.instance_id, verifier.instance_id, 6)
    async with terminal("chat", url=address(world)) as user:
        await user.waits()
        await say(user, "hi")
        await user.until(lambda: bool(re.search(r"window 6 · acceptance 1\.00 · TPOT", user.text)), "live status")
        assert user.text.rpartition("\n")[2] != ">", "the answer still grows"
        await user.waits()
        assert user.colours("hello") >= {"green", "cyan"}, "accepted guesses and bonus tokens"
