"""Tools for models whose chat template does not mention them: in the system message, in the words of Hermes.

Invariant: the conversation that comes out has neither tools nor calls but in contents, where they look as the parser of
Hermes reads them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from services.gateway.text.chat_template import ChatMessage, Conversation

INSTRUCTIONS = """\
You can call functions to answer the user. These functions are available:
<tools>
{tools}
</tools>
To call a function, write a JSON object with its name and arguments within <tool_call></tool_call>:
<tool_call>
{{"name": <function-name>, "arguments": <arguments-object>}}
</tool_call>"""


def described(conversation: Conversation) -> Conversation:
    """The same in plain messages. Results of tools become a message of the user."""
    messages: list[ChatMessage] = []
    is_result = False
    for message in conversation.messages:
        if message.role == "tool":
            result = f"<tool_response>\n{message.content}\n</tool_response>"
            if is_result:
                result = f"{messages.pop().content}\n{result}"
            named = {name: value for name, value in message.fields.items() if name == "tool_call_id"}
            messages.append(ChatMessage("user", result, named))
        else:
            messages.append(_plain(message))
        is_result = message.role == "tool"
    if conversation.tools:
        messages = _introduced(messages, conversation.tools)
    return replace(conversation, messages=messages, tools=())


def _plain(message: ChatMessage) -> ChatMessage:
    fields = dict(message.fields)
    calls = [_call(each["function"]) for each in fields.pop("tool_calls", ())]
    contents = [*([message.content] if message.content else []), *calls]
    return ChatMessage(message.role, "\n".join(contents), fields)


def _call(function: dict[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def _introduced(messages: Sequence[ChatMessage], tools: Sequence[Any]) -> list[ChatMessage]:
    """With the tools behind what the system message says."""
    text = INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if messages and messages[0].role == "system":
        first, *others = messages
        return [replace(first, content=f"{first.content}\n\n{text}" if first.content else text), *others]
    return [ChatMessage("system", text), *messages]
