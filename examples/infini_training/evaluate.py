"""The pass-key test at lengths far beyond training: the paper's Table 3.

What samples have in common is read once. Nothing is approximated by that: the state after a common
prefix is the same for all, and a text of 128K tokens is the start of one of 256K.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infini_training.passkey import KEY_TOKENS, PassKeyText
from longmem.training import RecurrentState, SegmentRecurrent

CALL_TOKENS = 4096
"""Tokens of one forward pass, over all rows."""


@dataclass(frozen=True)
class Cell:
    """How many keys came back at one length and depth."""

    length: int
    depth: str
    samples: int
    right: int


class Examiner:
    """Asks for pass keys.

    Args:
        recurrent: the trained model.
        text: builds the texts.
        seed: of keys, phases and places.
    """

    def __init__(self, recurrent: SegmentRecurrent, text: PassKeyText, seed: int = 0) -> None:
        self.recurrent, self.text, self.rng = recurrent, text, random.Random(seed)
        self.segment, self.asking = recurrent.segment, text.plain.asking

    def measure(self, depth: str, lengths: Sequence[int], samples: Sequence[int]) -> Iterator[Cell]:
        """One cell per length, shortest first.

        Args:
            depth: "start", "middle" or "end".
            lengths: tokens of the whole text, ascending.
            samples: keys asked at each length, not ascending.
        """
        if depth == "start":
            return self._at_start(lengths, samples)
        return self._after_filler(depth, lengths, samples)

    def _at_start(self, lengths: Sequence[int], samples: Sequence[int]) -> Iterator[Cell]:
        keys = [self.text.key(self.rng) for _ in range(samples[0])]
        rows = torch.tensor(
            [
                self.text.haystack(self.rng.randrange(1000), self.text.needle(key), 0, lengths[-1])
                for key in keys
            ]
        )
        state, at = self.recurrent.empty(samples[0]), 0
        for length, n in zip(lengths, samples, strict=True):
            rows, state, keys = rows[:n], state.rows(torch.arange(n)), keys[:n]
            asked = self._where_asked(length)
            stop = asked // self.segment * self.segment
            state, at = self._read(state, rows[:, at:stop]), stop
            yield Cell(length, "start", n, self._ask(state, rows[:, stop:asked], keys))

    def _after_filler(
        self, depth: str, lengths: Sequence[int], samples: Sequence[int]
    ) -> Iterator[Cell]:
        phase, state, at = self.rng.randrange(1000), self.recurrent.empty(1), 0
        prefix = torch.tensor([self.text.intro + self.text.filler(phase, lengths[-1])])
        for length, n in zip(lengths, samples, strict=True):
            asked = self._where_asked(length)
            place = length // 2 if depth == "middle" else asked - 2 * self.segment
            fork = place // self.segment * self.segment
            state, at = self._read(state, prefix[:, at:fork]), fork
            keys = [self.text.key(self.rng) for _ in range(n)]
            rows = [self._told(key, depth, phase + fork, asked - fork) for key in keys]
            stop = (asked - fork) // self.segment * self.segment
            ids = torch.tensor(rows)
            forked = self._read(state.rows(torch.zeros(n, dtype=torch.long)), ids[:, :stop])
            yield Cell(length, depth, n, self._ask(forked, ids[:, stop:], keys))

    def _told(self, key: str, depth: str, phase: int, tokens: int) -> list[int]:
        """`tokens` tokens of filler with the needle near the start, or at the end."""
        needle, phase = self.text.needle(key), phase - len(self.text.intro)
        filler = tokens - len(needle)
        before = self.rng.randrange(self.segment) if depth == "middle" else filler
        rest = self.text.filler(phase + before, filler - before)
        return self.text.filler(phase, before) + needle + rest

    def _where_asked(self, length: int) -> int:
        """First token of the question; it falls anywhere in its segment."""
        return length - len(self.asking) - KEY_TOKENS - self.rng.randrange(self.segment)

    @torch.no_grad()
    def _read(self, state: RecurrentState, ids: Tensor) -> RecurrentState:
        """Read whole segments ``[B, n * segment]``."""
        step = max(1, CALL_TOKENS // ids.shape[0] // self.segment) * self.segment
        for start in range(0, ids.shape[1], step):
            part = ids[:, start : start + step]
            _, state = self.recurrent(part, state, keep=torch.tensor([part.shape[1] - 1]))
        return state

    @torch.no_grad()
    def _ask(self, state: RecurrentState, tail: Tensor, keys: Sequence[str]) -> int:
        """How many keys are answered right, greedily, after the last tokens `tail` ``[B, n]``."""
        asking = torch.tensor(self.asking).expand(len(keys), -1)
        ids = torch.cat((tail, asking), 1)
        for _ in range(KEY_TOKENS):
            logits, _ = self.recurrent(ids, state, keep=torch.tensor([ids.shape[1] - 1]))
            ids = torch.cat((ids, logits[:, -1].argmax(-1, keepdim=True)), 1)
        told = [self.text.answer(key) for key in keys]
        return sum(map(list.__eq__, ids[:, -KEY_TOKENS:].tolist(), told))
