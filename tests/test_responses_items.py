"""Items of the Responses dialect and the messages they stand for."""

from __future__ import annotations

from typing import Any

import pytest

from longmem.adapters.server.errors import ApiError
from longmem.adapters.server.items import joined, message_items, read_items, without
from longmem.tools import ToolCall

CALLS = [
    {"type": "function_call", "call_id": f"call_{i}", "name": "f", "arguments": "{}"}
    for i in (1, 2)
]
SAID = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Wait.", "annotations": []}],
}


def test_a_text_is_one_user_message_with_an_id_nobody_guesses() -> None:
    (first,), (second,) = read_items("Hi"), read_items("Hi")
    assert (first.role, first.text) == ("user", "Hi")
    assert first.id != second.id and len(first.id or "") > 40


def test_an_answer_and_its_calls_are_one_message_and_come_apart_again() -> None:
    messages = read_items([SAID, {"type": "reasoning", "id": "rs_1", "summary": []}, *CALLS])
    assert len(messages) == 1
    assert (messages[0].id, messages[0].text) == ("msg_1", "Wait.")
    assert messages[0].tool_calls == (ToolCall("call_1", "f", "{}"), ToolCall("call_2", "f", "{}"))
    items = message_items(messages[0])
    assert [item["type"] for item in items] == ["message", "function_call", "function_call"]
    assert items == message_items(read_items(items)[0])
    assert joined([*read_items([SAID]), *read_items(CALLS)]) == messages


def test_what_follows_a_call_is_a_message_of_its_own() -> None:
    result = {"type": "function_call_output", "call_id": "call_1", "output": "42", "name": "f"}
    messages = read_items([CALLS[0], result, SAID, {"role": "developer", "content": "x"}])
    assert [each.role for each in messages] == ["assistant", "tool", "assistant", "system"]
    assert (messages[1].text, messages[1].tool_call_id, messages[1].name) == ("42", "call_1", "f")
    assert message_items(messages[1])[0].items() >= result.items()


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert read_items([{"role": "user", "content": parts}])[0].text == "ab"
    output = {"type": "function_call_output", "call_id": "c", "output": parts}
    assert read_items([output])[0].text == "ab"


def test_an_item_is_taken_out_of_its_message() -> None:
    message = read_items([SAID, *CALLS])[0]
    said, first, second = message_items(message)
    left = without(message, first["id"])
    assert left is not None and [call.id for call in left.tool_calls] == ["call_2"]
    unsaid = without(message, said["id"])
    assert unsaid is not None and (unsaid.text, len(unsaid.tool_calls)) == ("", 2)
    assert without(left, "other") == left
    only = read_items([CALLS[1]])[0]
    assert without(only, second["id"]) is None
    assert without(read_items("Hi")[0], "other") is not None


@pytest.mark.parametrize(
    ("item", "place"),
    [
        ("text", "input[0]"),
        ({"role": "user"}, "input[0].content"),
        ({"role": 5, "content": "x"}, "input[0].role"),
        ({"role": "user", "content": [{"type": "input_file"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": ["x"]}, "input[0].content[0].type"),
        ({"role": "user", "content": "x", "id": "i" * 300}, "input[0].id"),
        ({"role": "user", "content": "x", "id": 7}, "input[0].id"),
        ({"type": ["message"]}, "input[0].type"),
        ({"type": "function_call", "call_id": "", "name": "f"}, "input[0].call_id"),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "input[0].arguments"),
        ({"type": "function_call_output", "call_id": "c"}, "input[0].output"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id"),
    ],
)
def test_a_bad_item_is_refused_with_its_place(item: Any, place: str) -> None:
    with pytest.raises(ApiError) as refused:
        read_items([item])
    assert (refused.value.status, refused.value.param) == (400, place)
