"""What the tests of fork, rollback and forget compare."""

from __future__ import annotations

import time

import torch
from conftest import SMALL
from test_compressive_memory import gates

from longmem import merging
from longmem.config import Compressive
from longmem.feeding import Feed
from longmem.gate_file import save_gates
from longmem.memory import ReadSpan

PROBE = range(40, 50)
LINEAR = Compressive(rule="linear", chunk=8)


def with_gates(engine, folder):
    """Settings with a compressive memory whose gates are half open."""
    path = folder / "gates.safetensors"
    save_gates(path, gates(engine.info, 0.3, -1.0), engine.model, LINEAR)
    return SMALL.replace(compressive=LINEAR.model_copy(update={"gates": str(path)}))


def probe(engine, session):
    """Logits ``[10, V]`` of a fixed continuation, which is forgotten again, and the blocks looked up."""
    memory = session._conversation.memory
    mark = memory.mark()
    rows, blocks = [], []
    for i, token in enumerate(PROBE):
        spans = [ReadSpan(1, int(i % 4 == 0))]
        (fed,) = engine.forward([Feed(memory, [token], spans, [0] if i == 0 else [], trace=True)])
        rows.append(fed.logits)
        blocks += [choice.blocks for choice in fed.reading.choices]
    memory.rewind(mark)
    return torch.stack(rows), blocks


def state_of(engine, session):
    """Everything later results depend on, bit for bit, by name: what is stored, what is held in
    memory, the random numbers, and the logits of a continuation."""
    conversation = session._conversation
    snapshot = conversation.ledger.handle.snapshot()
    stored = {} if snapshot is None else {**snapshot.blocks, **snapshot.state}
    parts = {f"stored.{name}": tensor for name, tensor in stored.items()}
    memory = conversation.memory
    if memory is None:
        return parts
    parts["random numbers"] = conversation.generator.get_state()
    parts["tokens, blocks, edges"] = torch.tensor(
        [memory.n_tokens, memory.n_blocks, *memory.table.edges]
    )
    for i, layer in enumerate(memory.layers):
        local = layer.local
        place = (local.first, local.place.offset, local.place.capacity)
        parts[f"place.{i}"] = torch.tensor(place)
        parts |= {f"raw.{i}": local.raw, f"rotated.{i}": local.rot, f"values.{i}": local.v}
        if layer.compressive is not None:
            held = layer.compressive.state
            parts |= {f"M.{i}": held.M, f"z.{i}": held.z}
    for i, layer in enumerate(memory.full_layers):
        parts[f"closed.{i}"] = torch.tensor([layer.closed, layer.first])
        parts[f"mass.{i}"] = layer.local.mass
        parts[f"initial.{i}"] = torch.stack(layer.working_set.initial)
    parts["logits"] = probe(engine, session)[0]
    return {name: tensor.clone() for name, tensor in parts.items()}


def differing(a, b):
    """Names of the parts that are not bit for bit the same."""
    names = sorted(a.keys() | b.keys())
    return [n for n in names if n not in a or n not in b or not torch.equal(a[n], b[n])]


def said(session):
    """Roles and texts of all turns."""
    return [(turn.role, turn.text) for turn in session.turns()]


def settle():
    """Wait until no file is being merged."""
    deadline = time.monotonic() + 60
    while merging._background._thread is not None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
