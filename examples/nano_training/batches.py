"""Training batches: dense dialogues as token ids, with what loss and geometry need to know."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from longmem.nano.pool import Facts, Pool
from nano_training.lines import INVENTED, Line, training_lines

TOKENS = 8192  # per batch, whatever the length of its rows
SCORED = (
    2048  # positions per batch whose next token is scored: all of the answers, a sample of the rest
)
MAX_TURNS = 1024  # per batch
QUERIES = 256  # positions per batch whose attention is trained to find the fact's turn
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
        return self.header[line.role] + self.tokenizer.encode(line.text).ids + self.closing


def make_row(
    rng: random.Random, encoder: Encoder, length: int, shared: Facts | None = None
) -> dict[str, Any]:
    """One dialogue of `length` tokens.

    Every list is per token, `queries` is (position, line of the fact, generic, first step).
    """
    ids: list[int] = []
    line_of: list[int] = []
    weight: list[float] = []
    answer_of: list[int] = []
    queries: list[tuple[int, int, bool, bool]] = []
    lines: list[Line] = []
    fact_line: dict[int, int] = {}
    for line in training_lines(rng, length, shared):
        index, turn = len(lines), encoder.ids(line)
        lines.append(line)
        if line.act in ("fact", "generic fact"):
            fact_line[line.key] = index
        asked = line.act in ("answer", "generic")
        head = len(encoder.header[line.role])
        weight += [OTHER] * head + [ANSWER if asked else OTHER] * (len(turn) - head)
        answer_of += [-1] * len(turn)
        if asked:
            start = len(ids) + head
            count = len(encoder.tokenizer.encode(line.value).ids)
            weight[start : start + count] = [VALUE] * count
            answer_of[start : start + count] = [index] * count
            queries += [
                (start - 1 + i, fact_line[line.key], line.act == "generic", i == 0)
                for i in range(count)
            ]
        ids += turn
        line_of += [index] * len(turn)
        if len(ids) > length:
            break
    queries = [query for query in queries if query[0] < length]
    return {
        "ids": ids[: length + 1],
        "line": line_of[:length],
        "weight": weight[1 : length + 1],
        "answer": answer_of[1 : length + 1],
        "queries": queries,
        "lines": lines,
    }


def make_batch(rng: random.Random, encoder: Encoder, length: int) -> Batch:
    """`TOKENS` tokens in rows of `length`, flat positions for scored tokens and queries."""
    shared = None
    if (
        rng.random() < 0.6
    ):  # the rows' keys are near-duplicates of each other, as in one long history
        pool = Pool(rng, invented=rng.choice(INVENTED))
        shared = Facts(pool, owners=rng.randint(12, 60), attributes=rng.randint(4, 20))
    rows = [make_row(rng, encoder, length, shared) for _ in range(TOKENS // length)]
    line = np.array([row["line"] for row in rows], np.int64)
    batch = {
        "ids": np.array([row["ids"] for row in rows], np.int64),
        "line": line,
        "end": np.stack([_line_ends(r) for r in line]),
        "keep": np.stack([_kept(rng, row) for row in rows]),
    }
    return batch | _turns(rows, line) | _scored(rng, rows, length) | _queries(rng, rows, length)


def _turns(rows: list[dict[str, Any]], line: np.ndarray) -> Batch:
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
            said = row["lines"][line[index][np.searchsorted(turn[index], number)]]
            if said.act == "generic fact":
                length[number] = 0
    return {"turn": np.minimum(turn, MAX_TURNS - 1), "turn_start": start, "turn_length": length}


def _line_ends(line: np.ndarray) -> np.ndarray:
    """Position of the last token of each token's turn."""
    return np.searchsorted(line, line, side="right") - 1


def _kept(rng: random.Random, row: dict[str, Any]) -> np.ndarray:
    """Which tokens stay visible once far: all asked facts, most others, some of the rest."""
    share = rng.uniform(0.2, 1.0)
    asked = {query[1] for query in row["queries"]}
    kept = []
    for index, line in enumerate(row["lines"]):
        chance = 1.0 if index in asked else 0.5 + share / 2 if line.act.endswith("fact") else share
        kept.append(rng.random() < chance)
    return np.array(kept)[np.array(row["line"])]


def _scored(rng: random.Random, rows: list[dict[str, Any]], length: int) -> Batch:
    """`SCORED` flat positions with weights; sampled ones stand for those left out."""
    weight = np.array([row["weight"] for row in rows], np.float32).reshape(-1)
    answer = np.concatenate(
        [
            np.where(np.array(row["answer"]) < 0, -1, np.array(row["answer"]) + 1000 * i)
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


def _queries(rng: random.Random, rows: list[dict[str, Any]], length: int) -> Batch:
    """`QUERIES` flat positions, the replies' first steps first, padded with weight 0."""
    flat = [
        (i * length + pos, i, fact, generic, first)
        for i, row in enumerate(rows)
        for pos, fact, generic, first in row["queries"]
    ]
    rng.shuffle(flat)
    flat = sorted(flat, key=lambda query: not query[4])[:QUERIES]
    found = np.zeros((4, QUERIES), np.int64)
    found[:, : len(flat)] = np.array([query[:4] for query in flat], np.int64).reshape(-1, 4).T
    weight = np.zeros(QUERIES, np.float32)
    weight[: len(flat)] = 1.0
    return {
        "query": found[0],
        "query_row": found[1],
        "query_fact": found[2],
        "query_generic": found[3],
        "query_weight": weight,
    }


def _produce(queue: Any, tokenizer_file: str, length: int, seed: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder, rng = Encoder(Tokenizer.from_file(tokenizer_file)), random.Random(seed)
    while True:
        queue.put(make_batch(rng, encoder, length))


def batches(tokenizer_file: str, length: int, seed: int) -> Iterator[Batch]:
    """Endless batches, made in a process of their own: the trainer does not wait for them."""
    context = mp.get_context("spawn")
    queue = context.Queue(maxsize=8)
    worker = context.Process(
        target=_produce, args=(queue, tokenizer_file, length, seed), daemon=True
    )
    worker.start()
    try:
        while True:
            yield queue.get()
    finally:
        worker.terminate()
