"""The compiled forward pass: what the model computes, with attention left to the router."""

from __future__ import annotations

import architectures
import pytest
import torch
from tiny import attached, new_memory, qwen3, tokens
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from longmem.attention import ModelInfo, attach, forward
from longmem.compiled import Compiled
from longmem.config import MemoryConfig
from longmem.feeding import Fed, Feed
from longmem.graphs import StepGraphs
from longmem.memory import ForwardPass, ReadSpan, Scratch
from longmem.ops import working_set_attention
from longmem.ops.kernels import Launch
from longmem.ops.kernels.configs import tried
from longmem.packing import run_packed
from longmem.retrieval.softvote import SoftVote

ROUNDING = 1e-4
"""Float32, three layers: fused operations are summed in another order."""
ROUNDING_BF16 = 0.02
"""Two layers whose intermediate values the model's own code rounds to 8 bits, and the compiler does not."""
FEW = Launch({"PROGRAMS": 2, "BLOCK_N": 32})
"""The interpreter runs one program after the other."""
CONFIG = MemoryConfig(
    n_init=4, n_local=16, block_size=8, topk=2, lookup_span=8, two_level_above=None
)


def gemma2() -> PreTrainedModel:
    """A tiny random Gemma 2: soft caps, sliding layers, norms on both sides."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        sliding_window=12,
        pad_token_id=0,
    )
    return Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()


def decoded(model: PreTrainedModel, info: ModelInfo, run: Compiled | None) -> Tensor:
    """Logits of three decode steps after 40 tokens; the first looks up, the others recycle."""
    memory, found = new_memory(info, CONFIG), []
    for i, (ids, voters) in enumerate([(tokens(40), 40), ([7], 1), ([8], 0), ([9], 0)]):
        part = ForwardPass([(memory, memory.prepare([ReadSpan(len(ids), voters)]))])
        last = torch.tensor([len(ids) - 1])
        found.append(forward(model, torch.tensor([ids]), part, last, run if i else None))
        part.finish()
    return torch.cat(found)


@pytest.mark.parametrize("make", [qwen3, gemma2])
def test_a_compiled_pass_gives_the_models_logits(make) -> None:
    model, info = attached(make())
    torch._dynamo.reset()
    expected = decoded(model, info, None)
    compiled = decoded(model, info, Compiled(model))
    assert (compiled - expected).abs().max() < ROUNDING * expected.abs().max()
    assert torch.equal(decoded(model, info, None), expected), "the model itself has changed"


def test_the_compiler_does_not_look_into_attention() -> None:
    model, info = attached(qwen3())
    torch._dynamo.reset()
    seen: list[bool] = []

    class Watching(ForwardPass):
        def attend(self, *arguments):
            seen.append(torch.compiler.is_compiling())
            return super().attend(*arguments)

    memory = new_memory(info, CONFIG)
    part = Watching([(memory, memory.prepare([ReadSpan(1, 1)]))])
    forward(model, torch.tensor([[3]]), part, torch.tensor([0]), Compiled(model))
    assert seen == [False] * len(info.layers)


def test_graphs_run_the_compiled_model_and_keep_the_same_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setenv("LONGMEM_KERNELS", "interpret")
        monkeypatch.setattr(working_set_attention, "_kernels_take", lambda tensors: False)
        monkeypatch.setattr(SoftVote, "fused", False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = architectures.build("llama", dtype=torch.bfloat16, head_dim=64, **sizes).to(device)
    info = attach(model)
    torch._dynamo.reset()
    found = {}
    for wanted in (True, "compiled"):
        graphs = StepGraphs.of(model, info.layers, wanted)
        assert graphs is not None
        memory, scratch = new_memory(info, CONFIG), Scratch()
        feeds = [(tokens(40), 40), ([7], 1), ([8], 0), ([9], 0)]
        for ids, voters in feeds:
            feed = Feed(memory, ids, [ReadSpan(len(ids), voters)])
            with tried("step_attention", "attend", FEW):
                (fed,) = run_packed(model, [feed], False, scratch, graphs)
            assert isinstance(fed, Fed), fed
        assert graphs.replays == 2 and graphs.refused is None
        found[wanted] = fed.logits, memory.n_tokens
    (plain, held), (compiled, kept) = found.values()
    assert held == kept == 43
    assert (compiled - plain).abs().max() < ROUNDING_BF16 * plain.abs().max()
