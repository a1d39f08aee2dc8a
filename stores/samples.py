"""Made-up sessions and commits: what the conformance cases store and compare."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from longmem.store import Commit, SessionHandle, SessionInfo, TurnRecord

LAYOUT = ((2, 8), (2, 8), (1, 4))
"""Per layer (H_kv, D); the layers differ, as in models that mix attention widths."""


def sample_info(session_id: str = "alice", **changes: object) -> SessionInfo:
    """A new session of three layers, float32 unless `changes` say otherwise."""
    info = SessionInfo(
        id=session_id,
        owner="owner",
        metadata={"title": "Tea 茶", "tags": ["a", "b"]},
        fingerprint={"model": "m1", "tokenizer": "t1"},
        layout=LAYOUT,
        dtype="float32",
        created_at=1000.25,
        updated_at=1000.25,
    )
    return replace(info, **changes)  # type: ignore[arg-type]  # any field, by name


def sample_commit(info: SessionInfo, lengths: Sequence[int] = (7, 5)) -> Commit:
    """A commit that continues `info` with one turn per length; other contents in every session and
    at every head.

    Args:
        lengths: tokens of each turn.
    """
    start, stop = info.n_tokens, info.n_tokens + sum(lengths)
    random = torch.Generator().manual_seed(zlib.crc32(info.id.encode()) + info.head)
    dtype = getattr(torch, info.dtype)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return Commit(
        parent=info.head,
        turns=sample_turns(info, lengths),
        start=start,
        stop=stop,
        kv=[noise(stop - start, 2, heads, dim).to(dtype) for heads, dim in info.layout],
        blocks={"table": torch.full((1, 2), info.head), "representatives": noise(1, 4, 8)},
        state={"scores": noise(stop), "rng": torch.arange(info.head, info.head + 16).byte()},
    )


def sample_turns(info: SessionInfo, lengths: Sequence[int]) -> list[TurnRecord]:
    """Turns that continue `info`, alternating user and assistant."""
    turns, start = [], info.n_tokens
    for index, length in enumerate(lengths, info.n_turns):
        turn = TurnRecord(
            index=index,
            role="assistant" if index % 2 else "user",
            text=f"turn {index} says naïve 茶 🍵",
            ids=tuple(range(start * 3, start * 3 + length)),
            start=start,
            spans=((length - 1, 1, (0, 2)), (1, 1)) if length > 1 else ((length, length),),
            created_at=1000.5 + index,
            extra={"finish_reason": "eos", "nested": [1, None, "ü"]},
        )
        turns.append(turn)
        start = turn.stop
    return turns


def fill(handle: SessionHandle, commits: int, lengths: Sequence[int] = (7, 5)) -> list[Commit]:
    """Make several commits; returns them."""
    made = []
    for _ in range(commits):
        made.append(sample_commit(handle.info, lengths))
        handle.commit(made[-1])
    return made


def assert_holds(handle: SessionHandle, commits: Sequence[Commit]) -> None:
    """Everything a session holds is exactly what `commits` put there."""
    snapshot = handle.snapshot()
    assert snapshot is not None, "a session with commits has a snapshot"
    counts = (len(commits), commits[-1].stop, sum(len(commit.turns) for commit in commits))
    assert (snapshot.head, snapshot.n_tokens, snapshot.n_turns) == counts
    assert (handle.info.head, handle.info.n_tokens, handle.info.n_turns) == counts
    assert_same(snapshot.state, commits[-1].state)
    names = {name for commit in commits for name in commit.blocks}
    together = {
        name: torch.cat([commit.blocks[name] for commit in commits if name in commit.blocks])
        for name in names
    }
    assert_same(snapshot.blocks, together)
    for layer in range(len(handle.info.layout)):
        rows = torch.cat([commit.kv[layer] for commit in commits])
        assert_equal(handle.read_kv(layer, 0, commits[-1].stop), rows)
    assert handle.turns() == [turn for commit in commits for turn in commit.turns]


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Same names, and under each name the same tensor."""
    assert set(found) == set(expected), f"{sorted(found)} instead of {sorted(expected)}"
    for name, tensor in expected.items():
        assert_equal(found[name], tensor)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Same dtype, shape and bits (NaN payloads and the sign of zero included)."""
    assert found.dtype == expected.dtype, f"{found.dtype} instead of {expected.dtype}"
    assert found.shape == expected.shape, f"{tuple(found.shape)}, not {tuple(expected.shape)}"
    left, right = (_bits(tensor) for tensor in (found, expected))
    assert torch.equal(left, right), "the tensor came back with other bits"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
