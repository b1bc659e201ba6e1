"""What a row means: four formats, told apart by their columns, become one canonical conversation.

    messages           column `messages`, `conversations` or `conversation`: a list of {"role", "content"}
    ShareGPT           the same columns: a list of {"from", "value"}; a call of a function is a turn from `function_call`
    Alpaca             `instruction`, `output`, and where given `input`, `history` (pairs of earlier turns)
    prompt/completion  `prompt` with `completion` or `response`: text, or lists of messages

The first that fits, in this order, is taken. A column that is null counts as absent. For each of them a column `system`
gives the system turn and `tools` (a list, or its JSON text) the tools. No text is changed: nothing is stripped, and NUL
stays. Of a message are kept: role, content, and where given `tool_calls`, `tool_call_id`, `name`, `reasoning_content`,
`thinking`; whatever else it holds stays in the row's columns.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from siftune.records.example import Message
from siftune.records.row import UnusableError, unfit

FORMATS = (
    "messages (a list of role and content), ShareGPT (conversations: a list of from and value), "
    "Alpaca (instruction, input, output), prompt/completion (or prompt/response)"
)
_TURNS = ("messages", "conversations", "conversation")
_COMPLETIONS = ("completion", "response")
_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("function", "observation", "function_response", "tool_response"), "tool"),
}
_EXTRAS = ("tool_call_id", "name", "reasoning_content", "thinking")


class Conversation(NamedTuple):
    """Canonical messages, and the tools they may call (None where there are none)."""

    messages: list[Message]
    tools: list[Any] | None


def conversation_of(row: dict[str, Any]) -> Conversation:
    """The conversation that a row holds. Raises UnusableError with the reason where it holds none that can be trained on."""
    messages = _turns_of(row)
    for number, message in enumerate(messages, 1):
        for part in message.values():
            if reason := unfit(part):
                raise UnusableError(f"message {number} {reason}")
        if message["role"] == "assistant" and not message["content"].strip() and "tool_calls" not in message:
            raise UnusableError(f"empty assistant turn (message {number})")
    if all(message["role"] != "assistant" for message in messages):
        raise UnusableError("no assistant turn")
    tools = _tools_of(row)
    if reason := unfit(tools):
        raise UnusableError(f"column tools {reason}")
    return Conversation(_with_system(row, messages), tools)


def _turns_of(row: dict[str, Any]) -> list[Message]:
    if row.get("chosen") is not None and row.get("rejected") is not None:
        raise UnusableError("preference pairs are not supported (columns chosen and rejected)")
    for column in _TURNS:
        if row.get(column) is not None:
            return _messages(row[column], column)
    if row.get("instruction") is not None and row.get("output") is not None:
        return _alpaca(row)
    if row.get("prompt") is not None:
        for column in _COMPLETIONS:
            if row.get(column) is not None:
                return _side(row, "prompt", "user", 0) + _side(
                    row, column, "assistant", _length(row["prompt"])
                )
    columns = ", ".join(column if value is not None else f"{column} (null)" for column, value in row.items())
    raise UnusableError(f"no known format; columns: {columns[:500] or 'none'}")


def _with_system(row: dict[str, Any], messages: list[Message]) -> list[Message]:
    system = row.get("system")
    if system is None or system == "":
        return messages
    turn: Message = {"role": "system", "content": _text(system, "column system")}
    if messages[0]["role"] in ("system", "developer"):
        if messages[0]["content"] != system:
            raise UnusableError("two system turns that differ: column system and message 1")
        return messages
    if reason := unfit(system):
        raise UnusableError(f"column system {reason}")
    return [turn, *messages]


def _alpaca(row: dict[str, Any]) -> list[Message]:
    messages: list[Message] = []
    history = row.get("history")
    if not isinstance(history, list | None):
        raise UnusableError("column history is not a list")
    for pair in history or ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise UnusableError("column history is not a list of pairs")
        messages.append({"role": "user", "content": _text(pair[0], "column history")})
        messages.append({"role": "assistant", "content": _text(pair[1], "column history")})
    given = row["input"] if row.get("input") is not None else ""
    parts = [_text(row["instruction"], "column instruction"), _text(given, "column input")]
    messages.append({"role": "user", "content": "\n\n".join(part for part in parts if part)})
    messages.append({"role": "assistant", "content": _text(row["output"], "column output")})
    return messages


def _side(row: dict[str, Any], column: str, role: str, before: int) -> list[Message]:
    """One side of prompt/completion: its text as one turn, or its list of messages, the first numbered `before` + 1."""
    if isinstance(row[column], str):
        return [{"role": role, "content": row[column]}]
    return _messages(row[column], column, before)


def _length(side: Any) -> int:
    return len(side) if isinstance(side, list) else 1


def _messages(value: Any, column: str, before: int = 0) -> list[Message]:
    if not isinstance(value, list):
        raise UnusableError(f"column {column} is not a list of messages")
    return [_message(item, number) for number, item in enumerate(value, before + 1)]


def _message(given: Any, number: int) -> Message:
    if not isinstance(given, dict):
        raise UnusableError(f"message {number} is not an object")
    if given.get("role") is not None:
        role, content = given["role"], given.get("content")
    elif given.get("from") is not None:
        role, content = given["from"], given.get("value")
    else:
        raise UnusableError(f"message {number} has no role")
    if not isinstance(role, str):
        raise UnusableError(f"the role of message {number} is not text")
    known = _ROLES.get(role) or _ROLES.get(role.lower())
    calls: list[Any] = []
    if known is None and role == "function_call":
        known, calls, content = "assistant", _call_list(content, number), None
        if not calls:
            raise UnusableError(f"message {number} calls no function")
    elif known is None:
        raise UnusableError(f"unknown role {role[:50]!r} (message {number})")
    else:
        calls = _call_list(given.get("tool_calls"), number) or _call_list(given.get("function_call"), number)
        if calls and known != "assistant":
            raise UnusableError(f"message {number} calls a function, but its role is {known}")
    if content is None and calls:
        content = ""
    message: Message = {
        "role": known,
        "content": content if isinstance(content, str) else _joined(content, number),
    }
    if calls:
        message["tool_calls"] = [_call(call, number) for call in calls]
    for extra in _EXTRAS:
        if given.get(extra) is not None:
            message[extra] = _text(given[extra], f"{extra} of message {number}")
    return message


def _joined(content: Any, number: int) -> str:
    """The text of a content that is a list of parts; UnusableError for a part that isn't text."""
    if not isinstance(content, list):
        raise UnusableError(
            f"message {number} has no content"
            if content is None
            else f"content of message {number} is not text"
        )
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise UnusableError(
                f"{kind.removesuffix('_url')[:50]} content is not supported (message {number})"
            )
        if kind is None or not isinstance(part.get("text"), str):
            raise UnusableError(f"a content part of message {number} is not text")
        texts.append(part["text"])
    return "".join(texts)


def _call_list(value: Any, number: int) -> list[Any]:
    """Calls of functions as a list: given as one, as a single call, or as the JSON text of either."""
    if value is None or value == "":
        return []
    calls = _parsed(value, f"the function call of message {number}")
    if isinstance(calls, dict):
        return [calls]
    if not isinstance(calls, list):
        raise UnusableError(f"the function call of message {number} is not an object")
    return calls


def _call(given: Any, number: int) -> dict[str, Any]:
    """A call as chat templates of Transformers expect it: {"type", "function": {"name", "arguments": a mapping}}."""
    flat = isinstance(given, dict) and "function" not in given
    call = {"function": given} if flat else given
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UnusableError(f"a function call of message {number} has no name")
    if "arguments" not in function and (others := function.keys() - {"name", "id", "type"}):
        raise UnusableError(
            f"a function call of message {number} has no arguments, but {', '.join(sorted(others))}"
        )
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    arguments = _parsed(arguments, f"the arguments of {function['name'][:50]!r} in message {number}")
    if not isinstance(arguments, dict):
        raise UnusableError(
            f"the arguments of {function['name'][:50]!r} in message {number} are not an object"
        )
    function = {**function, "arguments": arguments}
    if flat:  # what belongs to the call, not to the function
        outside = {key: function.pop(key) for key in ("id", "type") if key in function}
        return {"type": "function", **outside, "function": function}
    return {"type": "function", **call, "function": function}


def _tools_of(row: dict[str, Any]) -> list[Any] | None:
    tools = row.get("tools")
    if tools is None or tools == "":
        return None
    tools = _parsed(tools, "column tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnusableError("column tools is not a list of objects")
    return tools or None


def _parsed(value: Any, what: str) -> Any:
    """`value`, or what it says where it is JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UnusableError(f"{what} is not JSON ({error})") from error


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise UnusableError(f"{what} is not text")
    return value
