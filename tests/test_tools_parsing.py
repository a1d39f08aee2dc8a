"""Reading tool calls out of replies: formats, what goes wrong in them, and streams."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longmem.errors import InputError
from longmem.tools import ToolCall, ToolCallSplitter, parse_tool_calls

FORMATS = ("hermes", "llama3", "mistral")
ARGUMENTS = {"place": "Zürich 漢字", "days": [1, {"deep": [None, True, 2.5]}]}


def written(format: str, *calls: tuple[str, Any]) -> str:
    """Calls as a model of that format writes them."""
    if format == "hermes":
        blocks = [json.dumps({"name": name, "arguments": given}) for name, given in calls]
        return "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks)
    if format == "llama3":
        return "; ".join(json.dumps({"name": name, "parameters": given}) for name, given in calls)
    if format == "mistral":
        listed = [{"name": name, "arguments": given} for name, given in calls]
        return "[TOOL_CALLS] " + json.dumps(listed)
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(given)}" for name, given in calls)


def read(text: str, format: str, **options: Any) -> tuple[str, list[tuple[str, Any]]]:
    content, calls = parse_tool_calls(text, format, **options)
    return content, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("writer", [*FORMATS, "mistral-args"])
def test_calls_come_back_as_they_were_written(writer: str) -> None:
    format = writer.removesuffix("-args")
    one, two = ("get_weather", ARGUMENTS), ("now", {})
    assert read(written(writer, one), format) == ("", [one])
    assert read(written(writer, one, two), format) == ("", [one, two])


def test_arguments_are_normalised_json_text() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a":1,"b" : "\\u00fc"}}</tool_call>'
    (call,) = parse_tool_calls(text, "hermes")[1]
    assert call.arguments == '{"a": 1, "b": "ü"}'


@pytest.mark.parametrize("writer", ["hermes", "mistral", "mistral-args"])
def test_text_around_calls_is_kept_without_the_white_space_between(writer: str) -> None:
    block = written(writer, ("f", {}))
    text = f"Let me look.\n\n{block}\n and then \n"
    assert read(text, writer.removesuffix("-args")) == ("Let me look.\nand then", [("f", {})])


def test_llama_calls_may_stand_behind_text_and_a_python_tag() -> None:
    text = 'Well. <|python_tag|>{"name": "f", "parameters": {"x": "}"}}; {"name": "g", "parameters": {}}'
    assert read(text, "llama3") == ("Well.", [("f", {"x": "}"}), ("g", {})])


def test_llama_replies_that_only_look_like_calls_stay_text() -> None:
    for text in (
        '{"name": "Ann", "age": 7}',
        '{"name": "f", "parameters": {}} is what I would call',
        '{"city": "Rome"}',
        'Use {"name": "f", "parameters": {}}',
        "<|python_tag|>print(1)",
    ):
        assert parse_tool_calls(text, "llama3") == (text, ())
    known = '{"name": "Ann", "parameters": {"age": 7}}'
    assert parse_tool_calls(known, "llama3", names=["f"]) == (known, ())
    assert read(known, "llama3", names=["Ann"])[1] == [("Ann", {"age": 7})]


@pytest.mark.parametrize(
    "inner",
    ["</tool_call>", "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "}}]", '"{', "\\", "; {"],
)
@pytest.mark.parametrize("writer", [*FORMATS, "mistral-args"])
def test_markers_and_braces_inside_strings_mean_nothing(writer: str, inner: str) -> None:
    call = ("f", {"text": f"a {inner} b", inner: {"x": inner}})
    format = writer.removesuffix("-args")
    assert read(written(writer, call, call), format) == ("", [call, call])


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f\\u0000", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>'),
        ("hermes", "<tool_call>f(x=1)</tool_call>"),
        ("hermes", "<tool_call>" + "[" * 100_000),
        ("hermes", "<tool_call>" + '{"a":' * 50_000),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}</tool_call>"),
        ("hermes", "the <tool_call> tag opens a call"),
        ("hermes", "<tool_call>"),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}'),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}, 5]'),
        ("mistral", "[TOOL_CALLS] []"),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"x": '),
        ("mistral", "[TOOL_CALLS]"),
        ("llama3", '{"name": "f", "parameters": {"x": 1}'),
        ("llama3", "{" * 100_000),
        ("llama3", "<|python_tag|>"),
    ],
)
def test_malformed_calls_stay_text_to_the_letter(format: str, text: str) -> None:
    assert parse_tool_calls(text, format) == (text, ())
    assert parse_tool_calls(f" Hm \n{text} ", format) == (f" Hm \n{text} ", ())


def test_a_malformed_call_does_not_take_the_others_with_it() -> None:
    good, bad = written("hermes", ("f", {"x": 1})), "<tool_call>{oops}</tool_call>"
    content, calls = read(f"{good}\n{bad}\n{good}", "hermes")
    assert (content, calls) == (bad, [("f", {"x": 1})] * 2)


def test_a_call_that_lacks_its_end_at_the_end_of_the_reply_counts() -> None:
    assert read('<tool_call>\n{"name": "f", "arguments": {}}\n', "hermes")[1] == [("f", {})]
    two = '<tool_call>{"name": "f"}\n<tool_call>{"name": "g", "arguments": null}</tool_call>'
    assert read(two, "hermes") == ("", [("f", {}), ("g", {})])


def test_forms_that_models_fall_into_are_read() -> None:
    twice = json.dumps({"name": "f", "arguments": json.dumps({"x": 1})})
    nested = json.dumps({"type": "function", "function": {"name": "f", "parameters": {"x": 1}}})
    for body in (twice, nested):
        assert read(f"<tool_call>{body}</tool_call>", "hermes")[1] == [("f", {"x": 1})]
    for text in (
        '[TOOL_CALLS]{"name": "f", "arguments": {"x": 1}}',
        '[TOOL_CALLS]f{"x": 1}',
        '[TOOL_CALLS]f [ARGS] {"x": 1}',
    ):
        assert read(text, "mistral")[1] == [("f", {"x": 1})]
    assert read("[TOOL_CALLS]f[ARGS]null", "mistral")[1] == [("f", {})]
    assert read('[TOOL_CALLS]f{"x": 1}, g{}', "mistral")[1] == [("f", {"x": 1}), ("g", {})]


def test_ids_are_new_unless_the_model_wrote_them() -> None:
    listed = '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "VvvODy9mT"}, {"name": "g"}]'
    first, second = parse_tool_calls(listed, "mistral")[1]
    assert first.id == "VvvODy9mT" and len(second.id) == 9 and second.id.isalnum()
    (named,) = parse_tool_calls("[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{}", "mistral")[1]
    assert named == ToolCall("a1b2c3d4e", "f", "{}")
    calls = parse_tool_calls(written("hermes", *[("f", {})] * 50), "hermes")[1]
    assert len({call.id for call in calls}) == 50


def test_half_a_surrogate_pair_in_arguments_stays_escaped() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"x": "ü\\ud83e"}}</tool_call>'
    (call,) = parse_tool_calls(text, "hermes")[1]
    assert call.arguments.encode() == b'{"x": "\\u00fc\\ud83e"}'


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InputError, match="no tool call format 'xml'; there are hermes, llama3"):
        ToolCallSplitter("xml")


def streamed(
    text: str, cuts: list[int], format: str
) -> tuple[list[str], str, list[tuple[str, str]]]:
    splitter = ToolCallSplitter(format)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    given = [splitter.push(text[a:b]) for a, b in itertools.pairwise(edges)]
    rest, calls = splitter.finish()
    return given, rest, [(call.name, call.arguments) for call in calls]


PIECES = st.sampled_from(
    [
        "Hello", " ", "\n", "  \n ", "<tool_call>", "</tool_call>", "<tool_", "<", "[TOOL_CALLS]",
        "[TOOL", "[ARGS]", "<|python_tag|>", "<|py", "{", "}", '"', ";", ",", "f", "ü🦉",
        '{"name": "f", "arguments": {"x": "</tool_call>"}}', '{"name": "g", "parameters": {}}',
        '[{"name": "f", "arguments": {}}]', '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PIECES, max_size=8),
    st.lists(st.integers(0, 500), max_size=6),
    st.sampled_from(FORMATS),
)
@example(["Hello", "\n", "<tool_call>", '{"name": "g", "parameters": {}}'], [5, 6, 9], "hermes")
@example(["Hello", "<tool_", "\n"], [7], "hermes")
@example([" ", "{", "}", "<|python_tag|>", '{"name": "g", "parameters": {}}'], [1, 2], "llama3")
def test_a_stream_cut_anywhere_gives_what_the_whole_text_does(
    pieces: list[str], cuts: list[int], format: str
) -> None:
    text = "".join(pieces)
    content, calls = parse_tool_calls(text, format)
    given, rest, found = streamed(text, cuts, format)
    assert "".join(given) + rest == content
    assert found == [(call.name, call.arguments) for call in calls]
    letters = streamed(text, list(range(len(text))), format)
    assert ("".join(letters[0]) + letters[1], letters[2]) == (content, found)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.sampled_from(FORMATS))
def test_no_text_whatever_raises_or_loses_a_character(text: str, format: str) -> None:
    content, calls = parse_tool_calls(text, format)
    assert calls or content == text


def test_text_is_given_out_as_soon_as_it_can_be_no_marker() -> None:
    splitter = ToolCallSplitter("hermes")
    assert splitter.push("It is <b>") == "It is <b>"
    assert splitter.push(" or <tool") == " or"
    assert splitter.push("box>") == " <toolbox>"
    assert splitter.push(" <tool_call>") == ""
    assert splitter.push(" and more") == ""
    assert splitter.finish() == (" <tool_call> and more", ())


def test_a_llama_reply_that_begins_with_a_brace_is_held_until_its_end() -> None:
    splitter = ToolCallSplitter("llama3")
    assert splitter.push("\n{") == splitter.push("a set}") == ""
    assert splitter.finish() == ("\n{a set}", ())
    other = ToolCallSplitter("llama3")
    assert other.push("A {set}") == "A {set}"
