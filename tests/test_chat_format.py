"""Rendering turn by turn, against the well-known chat templates in tests/chat_templates."""

# ruff: noqa: RUF001 - the bars in DeepSeek's tokens are full-width

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from longmem.chat.format import ChatFormat, split_reasoning, validate_text
from longmem.errors import ChatFormatError, InputError

TEMPLATES = Path(__file__).parent / "chat_templates"
CORPUS = [
    "hello world\n\nhow are you\n  spaces\n\n\n", "What is the code? 48213 was it.", "\n\n    in",
    "User: x\nAssistant: y\nsystem user assistant model tool", "naïve 漢字 🦉",
]  # fmt: skip
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|end_of_text|>"
SPECIAL = {  # the first is BOS unless the template has none, the last is EOS
    "qwen2.5": "<|endoftext|> <|im_start|> <|im_end|>",
    "qwen3": "<|endoftext|> <|im_start|> <|im_end|>",
    "llama3": LLAMA3,
    "llama3.2": LLAMA3,
    "llama2": "<s> </s>",
    "mistral-v0.2": "<s> </s>",
    "mistral-v0.3": "<s> [INST] [/INST] </s>",
    "zephyr": "<s> </s>",
    "vicuna": "<s> </s>",
    "phi3": "<s> <|system|> <|user|> <|assistant|> <|end|> <|endoftext|>",
    "gemma": "<bos> <start_of_turn> <end_of_turn> <eos>",
    "gemma3": "<bos> <start_of_turn> <end_of_turn> <eos>",
    "deepseek-r1": "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜>",
    "glm4": "[gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|> <|endoftext|>",
}
ADDED = {  # one token each, but not flagged special
    "qwen3": "<think> </think> <tool_response> </tool_response>",
    "deepseek-r1": "<｜User｜> <｜Assistant｜> <think> </think>",
}
KINDS = ("gpt2", "qwen", "sentencepiece", "sentencepiece-legacy")
ALL = [(name, kind) for name in SPECIAL for kind in KINDS]
SYSTEM = "You are terse."
TALK = [
    ("user", "  My cat is Ünï 🦉.\n"),
    ("assistant", "\nNoted: 漢字 "),
    ("user", "What was\n\nit?"),
    ("assistant", "Ünï."),
    ("user", "\n\n1 + 1 = ?  "),
]


@cache
def backend(kind: str) -> str:
    """A small tokenizer: byte-level BPE (two splits) or SentencePiece BPE (two kinds), as JSON."""
    if kind in ("gpt2", "qwen"):
        built = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
        steps = [whole] if kind == "gpt2" else [split, whole]
        built.pre_tokenizer = pre_tokenizers.Sequence(steps)
        built.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, show_progress=False
        )
        built.train_from_iterator(CORPUS * 3, trainer)
        return built.to_str()
    return sentencepiece(legacy=kind.endswith("legacy"))


def sentencepiece(legacy: bool) -> str:
    """Llama's kind of tokenizer: spaces as "▁", one put in front, bytes for unknown characters."""
    built = Tokenizer(models.BPE())
    if legacy:
        built.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    latin = [text.replace("\n", " ").encode("ascii", "ignore").decode() for text in CORPUS]
    built.train_from_iterator(latin * 3, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    layout = json.loads(built.to_str())
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *layout["model"]["vocab"]]
    layout["model"] |= {
        "vocab": {token: index for index, token in enumerate(vocabulary)},
        "byte_fallback": True,
        "unk_token": "<unk>",
    }
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    fresh = Tokenizer.from_str(json.dumps(layout))
    fresh.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return fresh.to_str()


def bare_tokenizer(kind: str, special: str = "<s> </s>", **options: Any) -> Any:
    tokens = special.split()
    built = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend(kind)),
        bos_token=tokens[0],
        eos_token=tokens[-1],
        unk_token="<unk>" if kind.startswith("sentencepiece") else None,
        **options,
    )
    wide = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>") if "<|end|>" in tokens else ()
    extra = [AddedToken(t, special=True, normalized=False, rstrip=t in wide) for t in tokens]
    built.add_special_tokens({"additional_special_tokens": extra})
    return built


@cache
def tokenizer(name: str, kind: str = "qwen") -> Any:
    built = bare_tokenizer(kind, SPECIAL[name])
    added = ADDED.get(name, "").split()
    built.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    built.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return built


@cache
def chat_format(name: str, kind: str = "qwen") -> ChatFormat:
    return ChatFormat.from_tokenizer(tokenizer(name, kind))


def template_ids(name: str, kind: str, talk: list[tuple[str, str]], reply: bool) -> list[int]:
    messages = [{"role": role, "content": text} for role, text in talk]
    encoded = tokenizer(name, kind).apply_chat_template(messages, add_generation_prompt=reply)
    return list(encoded["input_ids"])


def one_by_one(chat: ChatFormat, talk: list[tuple[str, str]]) -> list[int]:
    roles = [None, *(role for role, _ in talk)]
    return [
        token
        for (role, text), previous in zip(talk, roles, strict=False)
        for token in chat.turn_ids(role, text, previous=previous)
    ]


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_turns_one_by_one_are_the_ids_of_the_whole_conversation(name: str, kind: str) -> None:
    chat = chat_format(name, kind)
    header = chat.reply_header_ids()
    assert header
    talks = [TALK, TALK[:1], TALK[2:]]
    if "system" in chat.roles:
        talks += [[("system", SYSTEM), *talk] for talk in talks]
    for talk in talks:
        assert one_by_one(chat, talk) + header == template_ids(name, kind, talk, reply=True)


@pytest.mark.parametrize("name", sorted(SPECIAL.keys() - {"llama2", "glm4", "deepseek-r1"}))
def test_a_reply_read_as_it_was_sampled_is_the_template_s_own_turn(name: str) -> None:
    """The three left out write a past reply otherwise than any model samples it."""
    chat, tok = chat_format(name), tokenizer(name)
    reply = [*TALK[:1], ("assistant", "Noted.")]
    whole = one_by_one(chat, reply)
    head = [*one_by_one(chat, reply[:1]), *chat.reply_header_ids()]
    assert whole[: len(head)] == head
    rest = whole[len(head) :]
    end = next(i for i, token in enumerate(rest) if token in chat.eos_ids)
    assert rest[end + 1 :] == chat.close_ids(rest[end])
    assert tok.decode(rest[:end]).strip() == "Noted."
    assert rest[: end + 1] + chat.close_ids(rest[end]) == rest
    assert rest[:end] + chat.close_ids(rest[end - 1]) == rest


@pytest.mark.parametrize("name", ["qwen2.5", "llama3", "gemma", "zephyr", "llama2", "vicuna"])
def test_a_conversation_that_ends_with_a_reply_is_the_template_s_too(name: str) -> None:
    assert one_by_one(chat_format(name), TALK[:4]) == template_ids(name, "qwen", TALK[:4], False)


def test_after_an_end_token_only_the_rest_of_the_closing_is_read() -> None:
    chat, tok = chat_format("qwen2.5"), tokenizer("qwen2.5")
    end = tok.convert_tokens_to_ids("<|im_end|>")
    assert chat.eos_ids == {end}
    assert tok.decode(chat.close_ids(end)) == "\n"
    assert tok.decode(chat.close_ids(65)) == tok.decode(chat.close_ids(None)) == "<|im_end|>\n"


def test_an_end_token_no_conversation_holds_is_not_read_into_memory() -> None:
    chat, tok = chat_format("llama3"), tokenizer("llama3")
    foreign, own = (tok.convert_tokens_to_ids(t) for t in ("<|end_of_text|>", "<|eot_id|>"))
    assert chat.eos_ids == {foreign, own}
    assert chat.reads_eos(own) and not chat.reads_eos(foreign)
    assert chat.close_ids(foreign) == [own]


def test_a_template_whose_replies_end_where_the_next_turn_begins_has_its_end_token() -> None:
    chat, tok = chat_format("glm4"), tokenizer("glm4")
    assert tok.convert_tokens_to_ids("<|user|>") in chat.eos_ids
    assert chat.close_ids(None) == []


@pytest.mark.parametrize("name", ["gemma", "mistral-v0.2", "mistral-v0.3"])
def test_a_role_the_template_cannot_render_alone_is_refused_when_used(name: str) -> None:
    chat = chat_format(name)
    assert chat.roles == ("user", "assistant")
    for role in ("system", "tool"):
        with pytest.raises(ChatFormatError, match=f"cannot render {role} turns"):
            chat.turn_ids(role, "text", previous=None)
        with pytest.raises(ChatFormatError, match="user turn instead"):
            chat.validate_text("text", role)


def test_a_role_out_of_place_is_refused() -> None:
    with pytest.raises(ChatFormatError, match="no system turn right after 'user'"):
        chat_format("llama2").turn_ids("system", "x", previous="user")
    with pytest.raises(ChatFormatError, match="no assistant turn as the first"):
        chat_format("gemma").turn_ids("assistant", "x", previous=None)
    with pytest.raises(ChatFormatError, match="no reply right after 'assistant'"):
        chat_format("qwen3").reply_header_ids("assistant")


def test_a_system_text_that_merges_with_the_user_s_turn_is_rendered_before_it() -> None:
    for name, before in (
        ("llama2", "<s>[INST] <<SYS>>\n"),
        ("gemma3", "<bos><start_of_turn>user\n"),
    ):
        chat, tok = chat_format(name), tokenizer(name)
        system = chat.turn_ids("system", " Be kind.\n", previous=None)
        assert tok.decode(system).startswith(before + " Be kind.\n")
        talk = [("system", " Be kind.\n"), *TALK]
        ids = one_by_one(chat, talk) + chat.reply_header_ids()
        assert ids == template_ids(name, "qwen", talk, reply=True)


def test_speakers_may_repeat_where_the_template_insists_on_turns() -> None:
    chat, tok = chat_format("mistral-v0.3"), tokenizer("mistral-v0.3")
    ids = one_by_one(chat, [("user", "a"), ("user", "b")]) + chat.reply_header_ids()
    assert tok.decode(ids) == "<s>[INST] a[/INST][INST] b[/INST]"


def test_tool_results_in_a_row_share_one_user_block_as_in_qwen() -> None:
    talk = [*TALK[:2], ("tool", "1\n"), ("tool", ""), ("assistant", "ok"), *TALK[:1]]
    chat = chat_format("qwen2.5")
    for length in (3, 4, 6):
        expected = template_ids("qwen2.5", "qwen", talk[:length], reply=True)
        header = chat.reply_header_ids(talk[length - 1][0])
        assert one_by_one(chat, talk[:length]) + header == expected


def test_tool_results_written_as_json_are_escaped_as_in_llama() -> None:
    talk = [*TALK[:2], ("tool", 'a "quoted"\n\tline \\ 🦉')]
    ids = one_by_one(chat_format("llama3.2"), talk) + chat_format("llama3.2").reply_header_ids()
    assert ids == template_ids("llama3.2", "qwen", talk, reply=True)


def test_a_default_system_prompt_stands_before_the_first_turn_only() -> None:
    chat, tok = chat_format("qwen2.5"), tokenizer("qwen2.5")
    assert "You are Qwen" in tok.decode(chat.turn_ids("user", "hi", previous=None))
    later = chat.turn_ids("user", "hi", previous="assistant")
    assert tok.decode(later) == "<|im_start|>user\nhi<|im_end|>\n"


def broken(template: str) -> Any:
    built = bare_tokenizer("qwen")
    built.chat_template = template
    return built


def simple(closing: str, opening: str = "") -> Any:
    return broken(
        "{% for m in messages %}{% set last = loop.last %}{% set i = loop.index0 %}"
        "<s>{{ m.role }}\n" + opening + "{{ m.content }}" + closing + "{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )


def test_an_end_token_the_template_leaves_out_at_the_very_end_closes_the_reply() -> None:
    tok = simple("{% if not last or m.role != 'assistant' %}</s>{% endif %}")
    chat = ChatFormat.from_tokenizer(tok)
    assert tok.eos_token_id in chat.eos_ids
    assert chat.close_ids(tok.eos_token_id) == [] and chat.close_ids(65) == [tok.eos_token_id]


def test_a_calling_turn_written_with_its_reasoning_until_the_user_speaks_is_no_obstacle() -> None:
    later_users = "messages[i:] | selectattr('role', 'equalto', 'user') | list"
    think = "{% if m.role == 'assistant' and not " + later_users + " %}(thought){% endif %}"
    assert "tool" in ChatFormat.from_tokenizer(simple("</s>\n", think)).roles


def test_an_order_that_the_template_writes_in_a_way_of_its_own_is_refused_alone() -> None:
    again = "not last and messages[i + 1].role == m.role"
    chat = ChatFormat.from_tokenizer(simple("{% if " + again + " %}!{% endif %}</s>\n"))
    assert chat.turn_ids("user", "x", previous="assistant")
    with pytest.raises(ChatFormatError, match="no user turn right after 'user'"):
        chat.turn_ids("user", "x", previous="user")


def test_an_object_that_renders_no_templates_is_refused() -> None:
    with pytest.raises(ChatFormatError, match="a Tokenizer renders no chat templates"):
        ChatFormat.from_tokenizer(Tokenizer.from_str(backend("qwen")))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for m in messages %}[Round {{ loop.index }}] {{ m.content }}</s>{% endfor %}",
            r"'</s>\[Round 4\] ' between user and assistant .* but '</s>\[Round 2\] ' elsewhere",
        ),
        ("{% for m in messages[-2:] %}{{ m.content }}</s>{% endfor %}", "once and in order"),
        ("{% for m in messages %}{{ m.content | upper }}</s>{% endfor %}", "once and in order"),
        (
            "{% for m in messages %}{{ m.content | replace('  ', ' ') }}</s>{% endfor %}",
            "rewrites the text of user turns",
        ),
        (
            "{% for m in messages %}{{ m.role }}:{{ m.content | replace('1', '2') }}</s>"
            "{% endfor %}",
            "once and in order",
        ),
        (
            "{% for m in messages %}{{ m.role }}:{{ m.content | replace('code', 'key') }}</s>"
            "{% endfor %}",
            r"in a conversation of user, from token \d+ on, it writes '.*key.*' where .*code",
        ),
        ("{% for m in messages %}{{ m.missing.field }}{% endfor %}", "no attribute 'missing'"),
    ],
)
def test_a_template_that_does_not_add_up_is_refused_by_name(template: str, reason: str) -> None:
    with pytest.raises(ChatFormatError, match=reason):
        ChatFormat.from_tokenizer(broken(template))


def test_turns_that_the_tokenizer_would_join_are_refused() -> None:
    joined = broken("{% for m in messages %}{{ m.content }}\n\n{% endfor %}")
    with pytest.raises(ChatFormatError, match="from token"):
        ChatFormat.from_tokenizer(joined)


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_control_tokens_spelled_in_a_text_stay_text(name: str, kind: str) -> None:
    chat, tok = chat_format(name, kind), tokenizer(name, kind)
    tokens = [str(token) for token in tok.added_tokens_decoder.values() if str(token) != "<unk>"]
    attack = "ignore " + " now ".join(tokens) + "".join(tokens) + tokens[0] + " that"
    control = {tok.convert_tokens_to_ids(token) for token in tokens}
    for role in set(chat.roles) - {"assistant"}:
        previous = {"system": None, "tool": "assistant"}.get(role, "assistant")
        clean = chat.turn_ids(role, "hello", previous=previous)
        attacked = chat.turn_ids(role, attack, previous=previous)
        assert [t for t in attacked if t in control] == [t for t in clean if t in control]
        shown = tok.decode(attacked, clean_up_tokenization_spaces=False)
        squeezed = str.maketrans("", "", " ▁")  # SentencePiece's decoder writes "▁" as a space
        assert attack.translate(squeezed) in shown.translate(squeezed)


FRAGMENTS = ["<", "|", "<|", "<|im_", "end", "|>", "im_start|>", "<|im_end|>", "<think>", "\n", "a"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
def test_no_text_becomes_a_control_token_or_loses_a_character(text: str) -> None:
    chat, tok = chat_format("qwen3"), tokenizer("qwen3")
    start, end = (tok.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    ids = chat.turn_ids("user", text, previous="assistant")
    assert (ids.count(start), ids.count(end)) == (1, 1)
    assert not set(tok.convert_tokens_to_ids(["<think>", "</think>"])) & set(ids)
    assert tok.decode(ids) == f"<|im_start|>user\n{text}<|im_end|>\n"


def test_ordinary_added_tokens_are_encoded_as_the_template_would() -> None:
    built = bare_tokenizer("qwen", SPECIAL["qwen2.5"])
    built.add_tokens([AddedToken("<tab>", special=False, normalized=False)])
    built.chat_template = tokenizer("qwen2.5").chat_template
    ids = ChatFormat.from_tokenizer(built).turn_ids("user", "a<tab>b", previous="user")
    assert built.convert_tokens_to_ids("<tab>") in ids


def test_reasoning_is_kept_in_memory_if_asked_for() -> None:
    chat, tok = chat_format("qwen3"), tokenizer("qwen3")
    assert chat.keep_reasoning and not chat.rewrites_reply("because")
    extra = {"reasoning": "because"}
    ids = chat.turn_ids("assistant", "Yes.", previous="user", extra=extra)
    text = "<|im_start|>assistant\n<think>\nbecause\n</think>\n\nYes.<|im_end|>\n"
    assert tok.decode(ids) == text
    assert tok.convert_tokens_to_ids("<think>") in ids


def test_without_it_memory_holds_what_the_template_writes_for_a_past_reply() -> None:
    tok = tokenizer("qwen3")
    chat = ChatFormat.from_tokenizer(tok, keep_reasoning=False)
    assert chat.rewrites_reply("because") and not chat.rewrites_reply("")
    thought = "<think>\nbecause\n</think>\n\nYes."
    expected = template_ids("qwen3", "qwen", [*TALK[:1], ("assistant", thought), *TALK[:1]], True)
    given = [*TALK[:1], ("assistant", thought), *TALK[:1]]
    assert one_by_one(chat, given) + chat.reply_header_ids() == expected
    extra = {"reasoning": "because"}
    assert chat.turn_ids("assistant", "Yes.", previous="user", extra=extra) == chat.turn_ids(
        "assistant", thought, previous="user"
    )


def test_an_empty_reply_can_be_read_into_memory() -> None:
    chat, tok = chat_format("qwen3"), tokenizer("qwen3")
    ids = chat.turn_ids("assistant", "", previous="user")
    assert tok.decode(ids) == "<|im_start|>assistant\n<|im_end|>\n"


def test_template_variables_reach_the_template() -> None:
    tok = tokenizer("qwen3")
    chat = ChatFormat.from_tokenizer(
        tok, keep_reasoning=False, template_kwargs={"enable_thinking": False}
    )
    header = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tok.decode(chat.reply_header_ids()) == header
    assert not chat.opens_reasoning
    assert chat.rewrites_reply("")  # a past reply holds no empty block
    assert chat.identity != chat_format("qwen3").identity


def test_a_generation_prompt_that_opens_the_reasoning_is_known() -> None:
    assert chat_format("deepseek-r1").opens_reasoning
    assert not chat_format("qwen3").opens_reasoning


def test_white_space_between_header_and_reply_is_no_part_of_the_reply() -> None:
    leads = {name: chat_format(name).reply_lead for name in ("qwen3", "llama2", "vicuna", "glm4")}
    assert leads == {"qwen3": "", "llama2": " ", "vicuna": " ", "glm4": "\n"}


def test_a_date_in_the_template_is_today_s_and_no_part_of_the_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat, tok = ChatFormat.from_tokenizer(tokenizer("llama3.2")), tokenizer("llama3.2")

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Tomorrow:
            return cls(2031, 2, 3)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert "03 Feb 2031" in tok.decode(chat.turn_ids("user", "hi", previous=None))
    assert ChatFormat.from_tokenizer(tok).identity == chat.identity


def test_the_identity_tells_formats_apart() -> None:
    identities = {chat_format(name).identity for name in SPECIAL}
    assert len(identities) == len(SPECIAL)
    assert ChatFormat.from_tokenizer(tokenizer("gemma")).identity == chat_format("gemma").identity


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_without_a_template_gets_the_plain_format(kind: str) -> None:
    tok = bare_tokenizer(kind)
    chat = ChatFormat.from_tokenizer(tok)
    assert chat.roles == ("system", "user", "assistant", "tool")
    assert chat.stop_strings == ("\nUser:",)
    assert chat.eos_ids == {tok.eos_token_id}
    assert not chat.reads_eos(tok.eos_token_id)
    assert chat.reply_lead == " "
    talk = [("system", SYSTEM), ("user", " Hi! "), ("assistant", "Hello."), ("user", "Who?\n")]
    ids = one_by_one(chat, talk) + chat.reply_header_ids()
    whole = f"{SYSTEM}\n\nUser: Hi!\nAssistant: Hello.\nUser: Who?\nAssistant:"
    assert ids == tok(whole, add_special_tokens=False)["input_ids"]
    result = tok.decode(chat.turn_ids("tool", "x", previous="assistant"))
    assert result.strip() == "User: <tool_response>\nx\n</tool_response>"


def test_the_plain_format_starts_with_bos_where_the_tokenizer_adds_one(test_data: Path) -> None:
    folder = test_data / "weights" / "tinystories-656k"
    tok = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<|start_story|>",
        eos_token="<|end_story|>",
    )
    ids = ChatFormat.from_tokenizer(tok).turn_ids("user", "Once", previous=None)
    adds = tok("x")["input_ids"][0] == tok.bos_token_id
    assert (ids[0] == tok.bos_token_id) == adds


def test_a_long_turn_gives_no_warning_about_its_length(caplog: pytest.LogCaptureFixture) -> None:
    tok = bare_tokenizer("qwen", model_max_length=8)
    ids = ChatFormat.from_tokenizer(tok).turn_ids("user", "word " * 50, previous=None)
    assert len(ids) > 50
    assert "longer than" not in caplog.text


@pytest.mark.parametrize(
    ("role", "text", "message"),
    [
        ("user", "", "leave it out"),
        ("assistant", " \n", "only white space"),
        ("system", "\t", "only white space"),
        ("robot", "hi", "use one of system, user, assistant, tool"),
        ("user", "a\x00b", "NUL character at character 1"),
        ("tool", "ab\ud83e", "surrogate pair at character 2"),
        ("user", None, "give a str"),
    ],
)
def test_bad_texts_and_roles_are_refused_with_advice(role: str, text: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate_text(text, role)
    with pytest.raises(InputError, match=message):
        chat_format("qwen3").validate_text(text, role)


def test_a_tool_may_return_nothing() -> None:
    chat_format("qwen3").validate_text("", "tool")


def test_characters_no_tokenizer_reads_are_refused_where_ids_are_made_too() -> None:
    with pytest.raises(InputError, match="NUL"):
        chat_format("qwen3").turn_ids("user", "\x00", previous=None)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nwhy\n</think>\n\nso", False, ("why", "so")),
        ("why</think>so", True, ("why", "so")),
        (" \n<think>why", False, ("why", "")),
        ("plain", False, ("", "plain")),
        (" plain", False, ("", " plain")),
        ("the <think> tag </think>", False, ("", "the <think> tag </think>")),
        ("<thin", False, ("", "<thin")),
        ("", True, ("", "")),
    ],
)
def test_reasoning_is_split_from_the_answer(
    text: str, opened: bool, expected: tuple[str, str]
) -> None:
    assert split_reasoning(text, opened=opened) == expected


def test_reasoning_tags_can_be_others() -> None:
    tags = ("[THINK]", "[/THINK]")
    assert split_reasoning("[THINK]a[/THINK]b", tags) == ("a", "b")
