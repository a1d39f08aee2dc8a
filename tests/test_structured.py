"""Replies held to a JSON schema, or to a call of a tool, sampled by random models."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
import torch
from scripted import MEMORY, Scripted, scripted_engine, tiny_model
from test_chat_format import KINDS, tokenizer
from tool_styles import NATIVE, styled_tokenizer
from transformers import LogitsProcessorList

from longmem import Engine, InputError, Reply, Sampling
from longmem.tools import parse_tool_calls, reply_constraint, schema_processor
from longmem.tools.constraint import compiled_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "friend": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/friend"}]},
    },
    "required": ["name", "age", "tags", "friend"],
    "additionalProperties": False,
    "$defs": {
        "friend": {
            "type": "object",
            "properties": {"kind": {"const": "best"}},
            "required": ["kind"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "string", "pattern": "^[a-c]{3}$"},
    {"type": "string", "format": "date"},
    {"enum": ["yes", "no", 3, None, {"deep": [1]}]},
    {"oneOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"const": "none"}]},
]
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a place.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string", "maxLength": 5}, "days": {"enum": [1, 2]}},
        "required": ["place", "days"],
        "additionalProperties": False,
    },
}
NOW = {"name": "now", "description": "The time."}


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A random model whose logits have more rows than the tokenizer has tokens."""
    nano = styled_tokenizer("nano")
    return Engine(tiny_model(len(nano) + 41), nano, MEMORY)


def reply_of(
    engine: Engine, processor: Any, seed: int = 0, limit: int = 120, **options: Any
) -> Reply:
    sampling = Sampling(temperature=1.0, seed=seed, max_new_tokens=limit)
    with engine.session("a", **options) as session:
        return session.ask(
            "Hi", sampling=sampling, logits_processor=LogitsProcessorList([processor])
        )


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_every_reply_under_a_schema_is_valid_json_of_it(
    engine: Engine, schema: dict[str, Any]
) -> None:
    for seed in range(3):
        reply = reply_of(engine, reply_constraint(engine, schema=schema), seed)
        assert reply.finish_reason == "eos"
        jsonschema.validate(json.loads(reply.text), schema)


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_hold_whatever_the_kind_of_tokenizer(kind: str) -> None:
    built = tokenizer("llama2", kind)
    engine = Engine(tiny_model(len(built)), built, MEMORY)
    reply = reply_of(engine, reply_constraint(engine, schema=PERSON))
    jsonschema.validate(json.loads(reply.text), PERSON)


def test_nano_itself_answers_in_a_schema_greedily() -> None:
    engine = Engine.nano()
    with engine.session("a") as session:
        processor = LogitsProcessorList([reply_constraint(engine, schema=PERSON)])
        reply = session.ask("My name is Ann.", logits_processor=processor)
    jsonschema.validate(json.loads(reply.text), PERSON)


def test_a_reply_that_is_cut_at_its_length_says_so(engine: Engine) -> None:
    long = {"type": "array", "items": {"const": "word"}, "minItems": 50}
    reply = reply_of(engine, reply_constraint(engine, schema=long), limit=12)
    assert reply.finish_reason == "length" and reply.usage.generated == 12
    assert reply.text.startswith('["word", "w')


def test_json_mode_gives_an_object(engine: Engine) -> None:
    """Whatever it holds: a random model seldom closes one, so its beginning is looked at."""
    for seed in range(3):
        reply = reply_of(engine, reply_constraint(engine, schema="json"), seed, limit=30)
        if reply.finish_reason == "eos":
            assert isinstance(json.loads(reply.text), dict)
        else:
            assert reply.text.startswith(('{"', "{}"))


def test_no_white_space_can_go_on_for_ever() -> None:
    engine = scripted_engine(['{\n\n\n\n"a":\t\t\t1   }'])
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    schema["additionalProperties"] = False
    assert reply_of(engine, reply_constraint(engine, schema=schema)).text == '{"a": 1}'


def test_a_session_goes_on_with_free_replies_and_other_schemas(engine: Engine) -> None:
    yes, no = ({"const": word} for word in ("yes", "no"))
    texts = []
    with engine.session("a") as session:
        for schema in (yes, None, no):
            processor = reply_constraint(engine, schema=schema)
            given = LogitsProcessorList([processor] if processor else [])
            texts.append(session.ask("Hi", max_new_tokens=9, logits_processor=given).text)
    assert texts[0] == '"yes"' and texts[2] == '"no"' and texts[1] not in texts[::2]


def test_replies_at_once_keep_to_their_own_schemas(engine: Engine) -> None:
    def ask(i: int) -> str:
        schema = {"type": "object", "properties": {"n": {"const": i}}, "required": ["n"]}
        schema["additionalProperties"] = False
        processor = LogitsProcessorList([reply_constraint(engine, schema=schema)])
        with engine.session(f"s{i}") as session:
            return session.ask("Hi", logits_processor=processor).text

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(8))) == [json.dumps({"n": i}) for i in range(8)]


@pytest.mark.parametrize("style", [*NATIVE, "nano", "zephyr"])
def test_a_forced_call_is_one_call_in_the_model_s_own_format(style: str) -> None:
    built = styled_tokenizer(style)
    engine = Engine(tiny_model(len(built)), built, MEMORY)
    tools, format = [WEATHER, NOW], str(engine.chat.tool_format)
    for choice, names in (("required", {"get_weather", "now"}), ("get_weather", {"get_weather"})):
        processor = reply_constraint(engine, tools=tools, tool_choice=choice)
        reply = reply_of(engine, processor, tools=tools)
        content, calls = parse_tool_calls(reply.text, format)
        assert reply.finish_reason == "eos" and content == "" and len(calls) == 1
        assert calls[0].name in names
        arguments = json.loads(calls[0].arguments)
        if calls[0].name == "now":  # which names no parameters, and so takes none
            assert arguments == {}
        else:
            jsonschema.validate(arguments, WEATHER["parameters"])


def test_a_schema_beside_tools_leaves_the_choice(engine: Engine) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}
    for wanted in ("[true, false]", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'):
        scripted = scripted_engine([wanted + " and more"])
        processor = reply_constraint(scripted, schema=schema, tools=[NOW])
        assert reply_of(scripted, processor, tools=[NOW]).text == wanted
    for choice in ("none", "auto"):
        only = reply_constraint(engine, schema=schema, tool_choice=choice)
        jsonschema.validate(json.loads(reply_of(engine, only).text), schema)


def test_a_free_reply_has_no_constraint(engine: Engine) -> None:
    assert reply_constraint(engine) is None
    assert reply_constraint(engine, tools=[NOW]) is None
    assert reply_constraint(engine, tools=[NOW], tool_choice="none") is None


def test_reasoning_that_the_template_has_begun_is_free_and_the_rest_is_not() -> None:
    built = styled_tokenizer.__wrapped__("qwen3-tools")
    built.chat_template = built.chat_template.replace(
        "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}"
    )
    engine = Scripted(tiny_model(len(built)), built, MEMORY)
    engine.say("Let me think.\n</think>\n\nWell, no")
    assert engine.chat.opens_reasoning
    reply = reply_of(engine, reply_constraint(engine, schema={"const": "yes"}))
    assert reply.reasoning == "Let me think." and reply.text == '"yes"'


def test_reasoning_cannot_end_the_reply(engine: Engine) -> None:
    end = engine.tokenizer.eos_token_id
    processor = schema_processor(engine.tokenizer, "json", 2600, after="</think>")
    scores = torch.zeros(1, 2600)
    masked = processor(torch.tensor([[1, 2]]), scores)
    assert masked[0, end] == -torch.inf and masked.isinf().sum() == 1 and not scores.any()


def test_end_tokens_of_template_and_tokenizer_both_end_the_json() -> None:
    built = styled_tokenizer("llama3.1-tools")
    other = built.convert_tokens_to_ids("<|eom_id|>")
    n_vocab = len(built)
    processor = schema_processor(built, {"const": 1}, n_vocab, eos_ids=[other])
    ids, scores = torch.tensor([[5]]), torch.zeros(1, n_vocab)
    (one,) = built("1", add_special_tokens=False)["input_ids"]
    assert processor(ids, scores).isfinite().nonzero()[:, 1].tolist() == [one]
    ended = processor(torch.tensor([[5, one]]), scores).isfinite().nonzero()[:, 1].tolist()
    assert sorted(ended) == sorted([built.eos_token_id, other])


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"type": "object", "properties": 5}, "properties must be an object"),
        ({"$ref": "https://example.org/schema.json"}, "not present in a registry"),
        ({"type": "string", "pattern": "(?=x)y"}, "regex parse error"),
        ({"not": {"type": "string"}}, "Unimplemented keys"),
        ({"enum": []}, "Unsatisfiable schema"),
        ({"type": "string", "format": "nonsense"}, "Unknown format"),
        ("yaml", "a JSON schema is a mapping"),
        ([1], "a JSON schema is a mapping"),
        ({"const": float("nan")}, "cannot be written as JSON"),
        ({"const": "\ud800"}, "cannot be written as JSON"),
    ],
)
def test_schemas_that_are_none_or_cannot_be_enforced_are_refused(
    engine: Engine, schema: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        reply_constraint(engine, schema=schema)


def test_a_tool_choice_that_cannot_be_met_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="there is no such tool; choose one of now"):
        reply_constraint(engine, tools=[NOW], tool_choice="get_weather")
    with pytest.raises(InputError, match="there are no tools"):
        reply_constraint(engine, tool_choice="required")


def test_parameters_with_parts_that_cannot_be_enforced_are_enforced_as_far_as_they_can(
    engine: Engine,
) -> None:
    parameters = {"properties": {"n": {"enum": [7]}}, "required": ["n"], "not": {"required": ["m"]}}
    processor = reply_constraint(
        engine, tools=[{**NOW, "parameters": parameters}], tool_choice="required"
    )
    (call,) = parse_tool_calls(reply_of(engine, processor).text, "hermes")[1]
    assert call.arguments == '{"n": 7}'


def test_parameters_that_ask_for_more_are_left_open() -> None:
    engine = scripted_engine([])
    engine.say('<tool_call>\n{"name": "now", "arguments": {"zone": "x"}}\n</tool_call>')
    tool = {**NOW, "parameters": {"type": "object", "additionalProperties": True}}
    processor = reply_constraint(engine, tools=[tool], tool_choice="now")
    (call,) = parse_tool_calls(reply_of(engine, processor).text, "hermes")[1]
    assert call.arguments == '{"zone": "x"}'


def test_a_tokenizer_is_compiled_once(engine: Engine) -> None:
    one = compiled_tokenizer(engine.tokenizer, 2600)
    assert compiled_tokenizer(engine.tokenizer, 2600) is one
    assert compiled_tokenizer(engine.tokenizer, 2601) is not one


def test_a_tokenizer_that_is_not_fast_is_refused() -> None:
    class Slow:
        is_fast, eos_token_id = False, 0

    with pytest.raises(InputError, match="a Slow: it is not a fast tokenizer"):
        schema_processor(Slow(), "json", 10)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    built = styled_tokenizer.__wrapped__("nano")
    built.eos_token = None
    with pytest.raises(InputError, match=r"has no end token.*set tokenizer.eos_token"):
        schema_processor(built, "json", 2600)


def test_without_llguidance_the_error_names_the_extra(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"pip install 'longmem\[structured\]'"):
        reply_constraint(engine, schema="json")
