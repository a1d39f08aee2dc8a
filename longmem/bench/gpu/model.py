"""A model of a given shape with random weights, made where it runs, and an engine for it."""

from __future__ import annotations

import json

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from longmem import nano
from longmem.bench.gpu.shapes import Shape
from longmem.config import MemoryConfig
from longmem.engine import Engine


def random_model(
    shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> PreTrainedModel:
    """The model; its weights are drawn on the device, small enough that nothing overflows."""
    torch.manual_seed(seed)
    config = LlamaConfig(**shape.model, tie_word_embeddings=False)
    with device:
        model = LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None
    return model.eval()


def tokenizer_of(shape: Shape) -> PreTrainedTokenizerBase:
    """nano's tokenizer and chat template, with as many ids as the model has rows. The ids that were
    added stand for no text that would be read; they are only fed."""
    folder = nano.path()
    text = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    rows = text["model"]["vocab"]
    first = len(rows) + len(text["added_tokens"])
    rows |= {f"<{i}>": i for i in range(first, shape.model["vocab_size"])}
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(text)),
        eos_token=settings["eos_token"],
        pad_token=settings["pad_token"],
        chat_template=(folder / "chat_template.jinja").read_text("utf-8"),
    )


def engine_of(model: PreTrainedModel, shape: Shape, config: MemoryConfig, segment: int) -> Engine:
    """An engine that reads `segment` tokens at once; its decode steps are graphs wherever kernels
    serve."""
    return Engine(model, tokenizer_of(shape), config, segment_tokens=segment, graphs=True)


def engine_with(engine: Engine, config: MemoryConfig, segment: int | None = None) -> Engine:
    """Another engine over the same model."""
    tokens = segment or engine.segment_tokens
    return Engine(engine.model, engine.tokenizer, config, segment_tokens=tokens, graphs=True)


def compiled_engine(engine: Engine) -> Engine:
    """Another engine over the same model, whose recycled steps torch compiles besides attention."""
    return Engine(
        engine.model, engine.tokenizer, engine.config, segment_tokens=engine.segment_tokens,
        graphs="compiled",
    )  # fmt: skip


def random_ids(shape: Shape, n: int, seed: int) -> list[int]:
    """n token ids."""
    draws = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(0, shape.model["vocab_size"], (n,), generator=draws).tolist()
    return ids
