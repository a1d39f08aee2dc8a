"""Training batches: dense dialogues as token ids, with what loss and geometry need to know."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from longmem.nano.pool import Facts, Pool
from nano_training.lines import INVENTED, Line, training_lines
from nano_training.task_lines import SHARES, TaskLines

TOKENS = 6912  # per batch; rows of 128, 256 or 288 fill it
SCORED = (
    2048  # positions per batch whose next token is scored: all of the answers, a sample of the rest
)
MAX_TURNS = 1024  # per batch
QUERIES = 384  # positions per batch whose attention is trained to find the fact's turn
VALUE, ANSWER, OTHER = 1.0, 0.1, 0.01

Batch = dict[str, np.ndarray]


class Encoder:
    """Turns lines into token ids as the chat template would."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        roles = ("system", "user", "assistant")
        self.header = {role: tokenizer.encode(f"<|im_start|>{role}\n").ids for role in roles}
        self.closing = tokenizer.encode("<|im_end|>\n").ids

    def ids(self, line: Line) -> list[int]:
        """The whole turn."""
        return self.header[line.role] + self.tokens(line.text) + self.closing

    def tokens(self, text: str) -> list[int]:
        """A text, as it stands inside a turn."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids


class Row:
    """One dialogue of `length` tokens; every list is per token.

    Args:
        lines: the turns; as many are taken as fill the row.
        queries: ``(position, line of the fact, generic, first step, weight)``, see `QUERIES`.
    """

    def __init__(self, encoder: Encoder, lines: Iterable[Line], length: int) -> None:
        self.encoder = encoder
        self.ids: list[int] = []
        self.line: list[int] = []
        self.weight: list[float] = []
        self.answer: list[int] = []
        self.queries: list[tuple[int, int, bool, bool, float]] = []
        self.lines: list[Line] = []
        self._fact_line: dict[int, int] = {}
        for line in lines:
            self._append(line)
            if len(self.ids) > length:
                break
        self.ids, self.line = self.ids[: length + 1], self.line[:length]
        self.weight, self.answer = self.weight[1 : length + 1], self.answer[1 : length + 1]
        self.queries = [query for query in self.queries if query[0] < length]

    def _append(self, line: Line) -> None:
        index, turn = len(self.lines), self.encoder.ids(line)
        self.lines.append(line)
        if line.act in ("fact", "generic fact"):
            self._fact_line[line.key] = index
        asked = line.act in ("answer", "generic")
        head = len(self.encoder.header[line.role])
        start = len(self.ids) + head
        self.weight += [OTHER] * head + [ANSWER if asked else OTHER] * (len(turn) - head)
        self.answer += [-1] * len(turn)
        self.ids += turn
        self.line += [index] * len(turn)
        if asked:
            self._answer(line, index, start)

    def _answer(self, line: Line, index: int, start: int) -> None:
        """Weights and queries of a reply whose first value token is at `start`."""
        generic, at = line.act == "generic", start
        for number, (key, value) in enumerate(line.values):
            if number:
                at += len(self.encoder.tokens(", "))
            fact, size = self._fact_line[key], len(self.encoder.tokens(value))
            self.queries.append((start - 1, fact, generic, True, 1 / len(line.values)))
            first = 0 if number else 1  # the first value's first step is the reply's
            self.queries += [(at - 1 + i, fact, generic, False, 1.0) for i in range(first, size)]
            at += size
        end = at + (len(line.values) > 1)  # after a list, its end is part of the answer
        self.weight[start:end] = [VALUE] * (end - start)
        self.answer[start:end] = [index] * (end - start)


def make_rows(rng: random.Random, encoder: Encoder, length: int, task_share: float) -> list[Row]:
    """The rows of one batch: dialogues, and two of the bench's tasks in dense form."""
    shared = None
    if (
        rng.random() < 0.6
    ):  # the rows' keys are near-duplicates of each other, as in one long history
        pool = Pool(rng, invented=rng.choice(INVENTED))
        shared = Facts(pool, owners=rng.randint(12, 60), attributes=rng.randint(4, 20))
    amount = TOKENS // length
    of_task = round(amount * task_share / 2)
    rows = [
        Row(encoder, training_lines(rng, length, shared), length)
        for _ in range(amount - 2 * of_task)
    ]
    for task in rng.choices(list(SHARES), list(SHARES.values()), k=2):
        lines = TaskLines(rng, task)
        rows += [Row(encoder, lines.row(), length) for _ in range(of_task)]
    return rows


def make_batch(rng: random.Random, encoder: Encoder, length: int, task_share: float = 0.5) -> Batch:
    """`TOKENS` tokens in rows of `length`, flat positions for scored tokens and queries.

    Args:
        task_share: share of the rows that are tasks of the bench, 0 .. 1; the rest are dialogues.
    """
    rows = make_rows(rng, encoder, length, task_share)
    line = np.array([row.line for row in rows], np.int64)
    batch = {
        "ids": np.array([row.ids for row in rows], np.int64),
        "line": line,
        "end": np.stack([_line_ends(r) for r in line]),
        "keep": np.stack([_kept(rng, row) for row in rows]),
    }
    return batch | _turns(rows, line) | _scored(rng, rows, length) | _queries(rng, rows, length)


def _turns(rows: list[Row], line: np.ndarray) -> Batch:
    """Turns numbered over all rows, where they start, and their length; 0 if others may not see them.

    A fact with a generic key ("my gym code") would contradict another row's fact with the same key.
    """
    first = np.ones(line.shape, bool)
    first[:, 1:] = line[:, 1:] != line[:, :-1]
    turn = np.cumsum(first).reshape(line.shape) - 1
    start, length = np.zeros(MAX_TURNS, np.int64), np.zeros(MAX_TURNS, np.int64)
    begins = np.flatnonzero(first.reshape(-1))[:MAX_TURNS]
    start[: len(begins)] = begins
    length[: len(begins)] = np.diff(np.append(begins, line.size))
    for index, row in enumerate(rows):
        for number in np.unique(turn[index][turn[index] < MAX_TURNS]):
            said = row.lines[line[index][np.searchsorted(turn[index], number)]]
            if said.act == "generic fact":
                length[number] = 0
    return {"turn": np.minimum(turn, MAX_TURNS - 1), "turn_start": start, "turn_length": length}


def _line_ends(line: np.ndarray) -> np.ndarray:
    """Position of the last token of each token's turn."""
    return np.searchsorted(line, line, side="right") - 1


def _kept(rng: random.Random, row: Row) -> np.ndarray:
    """Which tokens stay visible once far: all asked facts, most others, some of the rest."""
    share = rng.uniform(0.2, 1.0)
    asked = {query[1] for query in row.queries}
    kept = []
    for index, line in enumerate(row.lines):
        chance = 1.0 if index in asked else 0.5 + share / 2 if line.act.endswith("fact") else share
        kept.append(rng.random() < chance)
    return np.array(kept)[np.array(row.line)]


def _scored(rng: random.Random, rows: list[Row], length: int) -> Batch:
    """`SCORED` flat positions with weights; sampled ones stand for those left out."""
    weight = np.array([row.weight for row in rows], np.float32).reshape(-1)
    answer = np.concatenate(
        [
            np.where(np.array(row.answer) < 0, -1, np.array(row.answer) + 1000 * i)
            for i, row in enumerate(rows)
        ]
    )
    chosen = np.flatnonzero(weight > OTHER)[:SCORED]
    rest = np.flatnonzero(weight <= OTHER)
    fill = np.array(rng.sample(range(len(rest)), SCORED - len(chosen)), np.int64)
    factor = np.ones(SCORED, np.float32)
    factor[len(chosen) :] = len(rest) / max(1, len(fill))
    where = np.concatenate([chosen, rest[fill]])
    groups = np.unique(answer[where], return_inverse=True)[1]
    groups = np.where(answer[where] < 0, 0, groups + 1)
    return {"scored": where, "scored_weight": weight[where] * factor, "scored_answer": groups}


def _queries(rng: random.Random, rows: list[Row], length: int) -> Batch:
    """`QUERIES` flat positions, the replies' first steps first, padded with weight 0."""
    flat = [
        (i * length + pos, i, fact, generic, first, weight)
        for i, row in enumerate(rows)
        for pos, fact, generic, first, weight in row.queries
    ]
    rng.shuffle(flat)
    flat = sorted(flat, key=lambda query: not query[4])[:QUERIES]
    found = np.zeros((4, QUERIES), np.int64)
    found[:, : len(flat)] = np.array([query[:4] for query in flat], np.int64).reshape(-1, 4).T
    weight = np.zeros(QUERIES, np.float32)
    weight[: len(flat)] = [query[5] for query in flat]
    return {
        "query": found[0],
        "query_row": found[1],
        "query_fact": found[2],
        "query_generic": found[3],
        "query_weight": weight,
    }


def _produce(queue: Any, tokenizer_file: str, length: int, seed: int, task_share: float) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder, rng = Encoder(Tokenizer.from_file(tokenizer_file)), random.Random(seed)
    while True:
        queue.put(make_batch(rng, encoder, length, task_share))


def batches(tokenizer_file: str, length: int, seed: int, task_share: float) -> Iterator[Batch]:
    """Endless batches, made in a process of their own: the trainer does not wait for them."""
    context = mp.get_context("spawn")
    queue = context.Queue(maxsize=8)
    worker = context.Process(
        target=_produce, args=(queue, tokenizer_file, length, seed, task_share), daemon=True
    )
    worker.start()
    try:
        while True:
            yield queue.get()
    finally:
        worker.terminate()
