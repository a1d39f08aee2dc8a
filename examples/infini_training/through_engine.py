"""The same test through `longmem.Session`: one long turn with the key in it, then the question."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch

from infini_training.passkey import QUESTION, PassKeyText
from longmem import Engine, MemoryConfig
from longmem.attention import forward
from longmem.config import Compressive
from longmem.memory import ForwardPass, ReadSpan
from longmem.training import SegmentRecurrent

DEPTHS = {"start": 0.0, "middle": 0.5, "end": 1.0}


def load(recurrent: SegmentRecurrent, folder: Path) -> Engine:
    """An engine over an exported model, its memory set as it was trained."""
    gates = str(folder / "gates.safetensors")
    compressive = Compressive(
        rule=recurrent.rule, feature_map=recurrent.feature_map, mix="gate", gates=gates
    )
    settings = {"n_local": recurrent.segment, "compressive": compressive}
    return Engine.from_pretrained(folder, MemoryConfig.preset("infini", **settings))


@torch.no_grad()
def difference(engine: Engine, recurrent: SegmentRecurrent, ids: list[int], span: int) -> float:
    """Largest difference of a logit between engine and trained model over the same tokens.

    Args:
        span: tokens of one look-up span, which the result must not depend on.
    """
    memory, whole = engine.new_memory(), torch.tensor([ids])
    expected, _ = recurrent(whole)
    spans = [ReadSpan(min(span, len(ids) - at), 0) for at in range(0, len(ids), span)]
    run = ForwardPass([(memory, memory.prepare(spans, ()))])
    logits = forward(engine.model, whole, run, torch.arange(len(ids)))
    run.finish()
    return float((logits - expected[0]).abs().max())


def ask(
    engine: Engine,
    text: PassKeyText,
    decode: Callable[[list[int]], str],
    depth: str,
    tokens: int,
    rng: random.Random,
) -> tuple[bool, int]:
    """Whether a reply holds the key told in a turn of about `tokens` tokens, and the session's
    tokens."""
    key = text.key(rng)
    needle = text.needle(key)
    filler = tokens - len(text.intro) - len(needle) - len(text.chat.asking)
    before = round(filler * DEPTHS[depth])
    told = text.haystack(rng.randrange(1000), needle, before, filler - before)
    with engine.session("pass key") as session:
        session.add([("user", decode(told)), ("assistant", "Okay.")])
        reply = session.ask(QUESTION.strip(), commit=False, max_new_tokens=16)
        return key in reply.text, session.stats().tokens
