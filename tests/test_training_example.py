"""The pass-key texts that examples/train_infini.py trains and examines with."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from infini_training.batches import draw_batch
from infini_training.evaluate import Examiner
from infini_training.passkey import KEY_TOKENS, PassKeyText
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from longmem import nano
from longmem.training import SegmentRecurrent


@pytest.fixture(scope="module")
def pass_key_text():
    tokenizer = AutoTokenizer.from_pretrained(nano.path())
    return PassKeyText(partial(tokenizer.encode, add_special_tokens=False))


@pytest.mark.parametrize("seed", range(6))
def test_a_pass_key_batch_tells_every_key_twice_and_ends_with_it(pass_key_text, seed):
    drawn = draw_batch(pass_key_text, random.Random(seed), 3, 512, 64, most_repeats=50)
    assert drawn.weights.shape == (3, drawn.ids.shape[1] - 1)
    for ids, weights in zip(drawn.ids, drawn.weights, strict=True):
        targets = (weights == 1).nonzero()[:, 0]
        assert len(targets) == KEY_TOKENS
        key = ids[targets + 1].tolist()
        told = [i for i in range(len(ids) - 1) if ids[i : i + 2].tolist() == key]
        assert len(told) == 3 and told[-1] == targets[0] + 1
        for repeated in drawn.repeats:
            assert all(i // 64 != repeated for at in told[:2] for i in (at - 5, at + 9))


def test_the_examiner_asks_at_every_length_and_depth_and_counts_what_is_right(pass_key_text):
    model = AutoModelForCausalLM.from_pretrained(nano.path(), dtype=torch.float32)
    examiner = Examiner(SegmentRecurrent(model, segment=64), pass_key_text)
    asked: list[tuple[int, list[int]]] = []

    def count(state: object, tail: Tensor, keys: list[str]) -> int:
        asked.append((state.tokens + tail.shape[1], tail[0].tolist()))  # type: ignore[attr-defined]
        return len(keys) - 1

    examiner._ask = count  # type: ignore[method-assign, assignment]
    for depth in ("start", "middle", "end"):
        cells = list(examiner.measure(depth, [512, 1024], [3, 2]))
        assert [(c.length, c.depth, c.samples, c.right) for c in cells] == [
            (512, depth, 3, 2),
            (1024, depth, 2, 1),
        ]
    ends = [tokens + len(examiner.asking) + KEY_TOKENS for tokens, _ in asked]
    assert all(0 <= length - end < 64 for length, end in zip([512, 1024] * 3, ends, strict=True))
    needle = pass_key_text.needle("12345")[-5:]
    assert [tail[-5:] == needle for _, tail in asked] == [False] * 4 + [True] * 2
