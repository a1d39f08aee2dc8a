"""Text from sampled ids, piece by piece."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longmem.chat.format import split_reasoning
from longmem.text_stream import IncrementalDecoder, TextStream

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level() -> Any:
    """One token per byte, a few longer ones, an end token and Qwen3's reasoning tags."""
    words = ["Ġthe", "User", "ðŁ", "ĠðŁ¦", "ĊĊ"]
    vocabulary = {token: index for index, token in enumerate(BYTES + words)}
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=built, eos_token="</s>")
    tags = [AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")]
    fast.add_tokens(tags)
    return fast


def byte_fallback() -> Any:
    """SentencePiece's way: words with "▁" for the space, single bytes for everything else."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "a", "b", "▁a", "é"]
    built = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(words)},
            merges=[],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=built, unk_token="<unk>")


LEVEL, FALLBACK = byte_level(), byte_fallback()
END = LEVEL.eos_token_id


def ids_of(text: str) -> list[int]:
    return list(LEVEL(text, add_special_tokens=False)["input_ids"])


def run(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push(token) for token in ids), stream.finish()]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
@example("\x80ࠀ0")
def test_any_text_comes_back_whole_and_never_in_parts_of_characters(text: str) -> None:
    spelled = text.encode("utf-8", "ignore")
    for tokenizer, ids in (
        (LEVEL, ids_of(spelled.decode())),
        (FALLBACK, [1 + byte for byte in spelled]),
    ):
        whole, decoder = tokenizer.decode(ids), IncrementalDecoder(tokenizer)
        pieces = [decoder.push(token) for token in ids]
        if not text.endswith("\ufffd"):
            assert "".join(pieces) == whole
        assert "".join([*pieces, decoder.finish()]) == whole
        assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert LEVEL.decode(ids_of(spelled.decode())) == spelled.decode()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, len(BYTES) + 4), max_size=80))
def test_ids_that_are_no_text_come_out_as_the_tokenizer_decodes_them(ids: list[int]) -> None:
    stream = TextStream(LEVEL, tags=None)
    pieces = run(stream, ids)
    assert "".join(pieces) == stream.text == LEVEL.decode(ids)


CHUNKS = [[word] for word in range(257, 263)] + [[1 + byte for byte in "漢".encode()], [1 + 10]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(CHUNKS), max_size=30))
def test_word_pieces_keep_their_spaces(chunks: list[list[int]]) -> None:
    decoder, ids = IncrementalDecoder(FALLBACK), [token for chunk in chunks for token in chunk]
    assert "".join([*map(decoder.push, ids), decoder.finish()]) == FALLBACK.decode(ids)


def test_an_emoji_in_four_tokens_comes_in_one_piece() -> None:
    ids = ids_of("a🦉b")
    assert len(ids) == 6
    pieces = run(TextStream(LEVEL), ids)
    assert [piece for piece in pieces if piece] == ["a", "🦉", "b"]


def test_the_work_per_token_does_not_grow_with_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, lengths = TextStream(LEVEL), []
    decode = LEVEL.decode
    monkeypatch.setattr(
        LEVEL, "decode", lambda ids, **options: lengths.append(len(ids)) or decode(ids, **options)
    )
    for token in [*ids_of("word " * 100), *([ids_of("🦉")[0]] * 100)]:
        stream.push(token)
    assert max(lengths) <= 2 * IncrementalDecoder.PENDING
    assert len(lengths) <= 12 * 600


def test_bytes_that_never_become_a_character_do_not_hold_the_stream_up() -> None:
    lead = ids_of("🦉")[0]
    stream = TextStream(LEVEL)
    shown = "".join(stream.push(lead) for _ in range(60))
    assert len(shown) >= 40 and set(shown) == {"\ufffd"}


def test_a_stop_string_is_cut_out_even_across_tokens() -> None:
    stream = TextStream(LEVEL, ["\nUser:"])
    pieces = run(stream, ids_of("hi\nUser: more"))
    assert "".join(pieces) == stream.text == "hi"
    assert stream.stopped and stream.stop_string == "\nUser:"


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_decided() -> None:
    stream = TextStream(LEVEL, ["STOP", "OPEN"])
    pieces = [stream.push(token) for token in ids_of("xSTOX")]
    assert pieces == ["x", "", "", "", "STOX"]
    assert [stream.push(token) for token in ids_of("STOPEN")] == [""] * 6
    assert stream.stop_string == "STOP"
    assert stream.text == "xSTOX"


def test_what_was_held_back_is_given_out_at_the_end() -> None:
    stream = TextStream(LEVEL, ["STOP"])
    assert run(stream, ids_of("aSTO"))[-1] == "STO"
    assert stream.text == "aSTO" and not stream.stopped


def test_the_first_stop_string_in_the_text_counts() -> None:
    stream = TextStream(LEVEL, ["cd", "bcx", "b"])
    run(stream, ids_of("abcd"))
    assert (stream.text, stream.stop_string) == ("a", "b")


def test_of_overlapping_stop_strings_the_one_complete_first_counts() -> None:
    stream = TextStream(LEVEL, ["S", "TSS"])
    run(stream, ids_of("TSS"))
    assert (stream.text, stream.stop_string) == ("T", "S")


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="abST<>/think\n ", max_size=40),
    st.lists(st.text(alphabet="abST\n", min_size=1, max_size=3), max_size=3),
    st.booleans(),
)
def test_streamed_pieces_are_the_text_of_the_whole(
    reply: str, stops: list[str], opened: bool
) -> None:
    stream = TextStream(LEVEL, stops, opened=opened)
    pieces = run(stream, ids_of(reply))
    reasoning, answer = split_reasoning(reply, opened=opened)
    hits = [(at + len(stop), at) for stop in stops if (at := answer.find(stop)) >= 0]
    cut = min(hits)[1] if hits else None
    assert "".join(pieces) == stream.text == answer[:cut]
    assert stream.stopped == (cut is not None)
    assert stream.reasoning == reasoning


def test_reasoning_is_kept_apart_while_it_streams() -> None:
    stream = TextStream(LEVEL, ["why"])
    pieces = run(stream, [*ids_of("<think>\nwhy 🦉\n</think>\n\nSo."), END])
    assert [piece for piece in pieces if piece] == ["S", "o", "."]
    assert (stream.text, stream.reasoning, stream.stopped) == ("So.", "why 🦉", False)


def test_a_reply_cut_off_in_its_reasoning_has_no_text() -> None:
    stream = TextStream(LEVEL)
    run(stream, ids_of("<think>\nbecause </thi"))
    assert (stream.text, stream.reasoning) == ("", "because </thi")


def test_a_reply_about_think_tags_is_shown_whole() -> None:
    stream = TextStream(LEVEL)
    run(stream, ids_of("Write <think>x</think> first."))
    assert stream.text == "Write <think>x</think> first."


def test_reasoning_is_plain_text_if_there_are_no_tags() -> None:
    stream = TextStream(LEVEL, tags=None)
    run(stream, ids_of("<think>x</think>y"))
    assert (stream.text, stream.reasoning) == ("<think>x</think>y", "")


def test_end_tokens_are_no_text_not_even_inside_a_character() -> None:
    owl = ids_of("🦉")
    stream = TextStream(LEVEL, skip_ids=[ids_of("!")[0]])
    run(stream, [*owl[:2], END, *owl[2:], ids_of("!")[0]])
    assert stream.text == "🦉"


@pytest.mark.parametrize(("reply", "text"), [(" hi", "hi"), ("hi", "hi"), ("  hi", " hi")])
def test_the_template_s_white_space_is_no_part_of_the_reply(reply: str, text: str) -> None:
    stream = TextStream(LEVEL, lead=" ")
    run(stream, ids_of(reply))
    assert stream.text == text


def test_longer_white_space_of_the_template_is_recognised_across_tokens() -> None:
    assert _text(TextStream(LEVEL, lead="\n \n"), "\n \nhi") == "hi"
    assert _text(TextStream(LEVEL, lead="\n \n"), "\n hi") == "\n hi"
    assert _text(TextStream(LEVEL, lead="\n \n"), "\n ") == "\n "


def _text(stream: TextStream, reply: str) -> str:
    pieces = run(stream, ids_of(reply))
    assert "".join(pieces) == stream.text
    return stream.text
