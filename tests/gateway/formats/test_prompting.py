"""Tools for a chat template that does not mention them."""

from __future__ import annotations

import json
from typing import Any

from services.gateway.formats.prompting import described
from services.gateway.text.chat_template import ChatMessage, Conversation
from tests.gateway.formats.reading import read

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"city": "Tromsø"}}}
HI = ChatMessage("user", "hi")


def test_tools_stand_in_the_system_message() -> None:
    for before, begin in (([], ""), ([ChatMessage("system", "Be brief.")], "Be brief.\n\n")):
        system, user = described(Conversation([*before, HI], tools=[TOOL])).messages
        assert (system.role, user) == ("system", HI)
        assert system.content is not None
        assert system.content.startswith(begin)
        listed = system.content.split("<tools>\n")[1].split("\n</tools>")[0]
        assert json.loads(listed) == TOOL


def test_calls_and_results_are_written_as_the_parser_reads_them() -> None:
    answer = ChatMessage("assistant", None, {"tool_calls": [CALL, CALL], "reasoning_content": "Hm."})
    results = [ChatMessage("tool", text, {"tool_call_id": "c1"}) for text in ("rain", "snow")]
    conversation = described(Conversation([HI, answer, *results, HI]))
    first, second, third, last = conversation.messages
    assert (first, last) == (HI, HI)
    assert second.fields == {"reasoning_content": "Hm."}
    calls = read("hermes", second.content or "").calls
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("f", {"city": "Tromsø"})] * 2
    assert (third.role, third.fields) == ("user", {"tool_call_id": "c1"}), "so it is named where it has no effect"
    assert third.content == ("<tool_response>\nrain\n</tool_response>\n<tool_response>\nsnow\n</tool_response>")
    assert not conversation.has_calls
