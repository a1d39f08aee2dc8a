"""The oracles again, on pre-trained weights that nobody here made (a Llama of children's stories)."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny import attached, new_memory, read_in_passes, whole_history_logits
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from longmem import Engine, MemoryConfig
from longmem.stores import SQLiteStore

CONFIG = MemoryConfig(
    n_init=8, n_local=128, block_size=32, topk=4, repr_topk=4, lookup_span=64, stride=4
)


@pytest.fixture(scope="module")
def model(test_data):
    folder = test_data / "weights" / "tinystories-656k"
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def tokenizer(test_data):
    file = test_data / "weights" / "tinystories-656k" / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(file))


@pytest.fixture(scope="module")
def ids(test_data, tokenizer):
    stories = json.loads((test_data / "tinystories" / "tinystories_1000.json").read_text())
    texts = [s if isinstance(s, str) else s["text"] for s in stories[:60]]
    return [i for t in texts for i in tokenizer(t)["input_ids"]]  # each begins with its start token


def test_within_the_window_logits_equal_the_dense_model(model, ids):
    routed, info = attached(model)
    with torch.no_grad():
        dense = model(torch.tensor([ids[:250]])).logits[0]
    memory = new_memory(info, CONFIG.replace(n_local=256))
    logits = read_in_passes(routed, memory, ids[:250], span=64, spans_per_pass=1)
    assert (logits - dense).abs().max() < 1e-4


def test_looking_up_every_block_equals_the_whole_history(model, ids):
    routed, info = attached(model)
    logits = read_in_passes(
        routed, new_memory(info, CONFIG.replace(topk=64)), ids[:700], span=64, spans_per_pass=2
    )
    expected = whole_history_logits(routed, info, ids[:700], CONFIG.n_local)
    assert (logits - expected).abs().max() < 1e-4


def test_the_length_of_a_pass_does_not_change_the_logits(model, ids):
    routed, info = attached(model)
    a = read_in_passes(routed, new_memory(info, CONFIG), ids[:900], span=64, spans_per_pass=1)
    b = read_in_passes(routed, new_memory(info, CONFIG), ids[:900], span=64, spans_per_pass=6)
    assert (a - b).abs().max() < 1e-4


def test_loss_stays_flat_over_a_stream_far_beyond_the_trained_positions(model, ids):
    """8,000 tokens, 15 times the trained positions, against the dense model on pieces that fit it."""
    routed, info = attached(model)
    stream = ids[:8000]
    logits = read_in_passes(routed, new_memory(info, CONFIG), stream, span=64, spans_per_pass=4)
    losses = token_losses(logits, stream)
    early, late = losses[:512].mean(), losses[-2000:].mean()
    pieces = [stream[at : at + 500] for at in range(0, 8000, 500)]
    with torch.no_grad():
        dense = [token_losses(model(torch.tensor([p])).logits[0], p)[100:] for p in pieces]
    assert late < 1.05 * early and late < torch.cat(dense).mean()


def token_losses(logits, ids):
    """Nats per token."""
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")


def test_a_session_resumes_with_the_same_reply(model, tokenizer, test_data, tmp_path):
    engine = Engine(copy.deepcopy(model), tokenizer, CONFIG)
    stories = json.loads((test_data / "tinystories" / "tinystories_1000.json").read_text())
    texts = [s if isinstance(s, str) else s["text"] for s in stories[:6]]
    with SQLiteStore(tmp_path / "s") as store:
        with engine.session("a", store=store) as session:
            session.add([("user", t) for t in texts])
            assert session.stats().blocks > 20
            expected = session.ask("Tell me a story.", commit=False, max_new_tokens=30).text
        before = engine.tokens_read
        with engine.session("a", store=store) as session:
            assert engine.tokens_read == before
            again = session.ask("Tell me a story.", commit=False, max_new_tokens=30).text
    assert again == expected and expected
