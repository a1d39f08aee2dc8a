"""Nano's tokenizer: byte-level BPE, digits in chunks of up to three, the ChatML template."""

from __future__ import annotations

import itertools
import json
import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nano_training.lines import training_lines

WORD_MERGES = 1200
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# A capital letter or a number never shares a token with the space before it:
# a value has the same ids wherever it stands.
PIECES = r"\p{N}{1,3}| ?\p{Ll}+|\p{Lu}\p{Ll}*| ?[^\s\p{L}\p{N}]+|\s"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
    " + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(dialogues: int = 3000) -> PreTrainedTokenizerFast:
    """Learns word pieces from the generator's text; numbers of two or three digits are tokens."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + WORD_MERGES,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_text(dialogues), trainer)
    bpe = Tokenizer.from_str(_with_numbers(bpe.to_str()))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        additional_special_tokens=list(SPECIALS[1:2]),
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def _text(dialogues: int) -> list[str]:
    """Roles and turns without digits, so that no merge is spent on numbers."""
    lines = ["system", "user", "assistant", "tool"] * 2000
    for seed in range(dialogues):
        for line in itertools.islice(training_lines(random.Random(seed)), 30):
            lines.append("".join(char for char in line.text if not char.isdigit()))
    return lines


def _with_numbers(serialized: str) -> str:
    """The tokenizer with all numbers of two and three digits and with the special tokens."""
    spec = json.loads(serialized)
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    digits = "0123456789"
    for parts in itertools.chain(
        itertools.product(digits, repeat=2), itertools.product(digits, repeat=3)
    ):
        vocab["".join(parts)] = len(vocab)
        merges += [["".join(parts[:cut]), "".join(parts[cut:])] for cut in range(1, len(parts))]
    bpe = Tokenizer.from_str(json.dumps(spec))
    bpe.add_special_tokens(list(SPECIALS))
    return bpe.to_str()
