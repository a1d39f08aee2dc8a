"""Where the ends of sharded and offloaded models lie."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from talks import tiny

from longmem.model_devices import input_device, logits_to_keep, values_of


def offloaded(place: object):
    """A model whose embeddings accelerate brings when they are used, and what they hold."""
    model = copy.deepcopy(tiny())
    embedding = model.get_input_embeddings()
    held = embedding.weight.detach()
    embedding.weight = torch.nn.Parameter(held.to("meta"), requires_grad=False)
    embedding._hf_hook = SimpleNamespace(execution_device=place, weights_map={"weight": held})
    return model, held


def test_ids_go_to_where_offloaded_embeddings_are_used():
    assert input_device(tiny()) == torch.device("cpu")
    for place, device in ((1, "cuda:1"), ("cpu", "cpu"), (torch.device("cuda:0"), "cuda:0")):
        assert input_device(offloaded(place)[0]) == torch.device(device)


def test_values_of_offloaded_weights_are_those_that_were_offloaded():
    model, held = offloaded("cpu")
    found = {name: values_of(model, name, t) for name, t in model.state_dict().items()}
    assert torch.equal(found.pop("model.embed_tokens.weight"), held)
    assert not any(tensor.is_meta for tensor in found.values())


def test_a_head_elsewhere_is_told_in_numbers_which_logits_are_wanted():
    model = copy.deepcopy(tiny())
    ids, last = torch.zeros(1, 5, dtype=torch.long), torch.tensor([1, 4])
    assert logits_to_keep(model, ids, last) is last
    model.lm_head.to("meta")
    assert logits_to_keep(model, ids, last) == [1, 4]
    assert logits_to_keep(model, ids[:, :1], torch.tensor([0])) == 1
