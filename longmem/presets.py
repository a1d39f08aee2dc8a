"""Methods of the field as settings of the memory: what each paper has, in its own sizes."""

from __future__ import annotations

from typing import Any

from longmem.errors import ConfigError

_PLAIN = {
    "window": "sliding",
    "block_boundaries": "fixed",
    "selection": "layer",
    "lookup": "topk",
    "far_positions": "constant",
    "lookup_layers": "all",
    "lookup_span": 512,
    "recycling": "fixed",
    "contiguity": 0,
}
"""What all papers have in common; written out, so that no default of ours is taken for theirs."""

_INFLLM = {
    **_PLAIN,
    "n_init": 128,
    "n_local": 4096,
    "block_size": 128,
    "topk": 16,
    "repr_topk": 4,
    "repr_by": "attention",
    "scorer": "representative",
    "stride": 1,
}

_PRESETS: dict[str, dict[str, Any]] = {
    # Ours: the defaults of MemoryConfig.
    "longmem": {},
    # Xiao et al., arXiv 2402.04617, section 4.1: blocks of 128, 4 representatives, 16 blocks.
    "infllm": _INFLLM,
    # Fountas et al., arXiv 2407.09450: surprise boundaries, refined; part of the blocks are neighbours.
    "em-llm": {
        **_INFLLM,
        "block_boundaries": "surprise",
        "min_block": 8,
        "refine": "modularity",
        "topk": 11,
        "contiguity": 5,
    },
    # Xiao et al., arXiv 2309.17453: attention sinks and the window, nothing else. Tokens that have left the
    # window and wait for their block to close are still attended, at the distance n_local.
    "streaming-llm": {**_PLAIN, "n_init": 4, "n_local": 4096, "topk": 0},
    # Munkhdalai et al., arXiv 2404.07143, section 3: segments of 2,048 tokens, linear + delta rule.
    "infini": {
        **_PLAIN,
        "n_init": 0,
        "n_local": 2048,
        "window": "segment",
        "topk": 0,
        "compressive": {"rule": "delta_literal", "feature_map": "elu", "mix": "gate"},
    },
    # Xu et al., arXiv 2411.05787: full attention at a refresh, the best 4,096 tokens between two. Keys beyond
    # n_local are met at the distance n_local; with n_local = trained positions it is the paper's method.
    "recycled": {
        **_PLAIN,
        "n_init": 128,
        "n_local": 4096,
        "lookup": "all",
        "recycling": "dynamic",
        "stride": 5,
        "similarity": 0.8,
        "topk_tokens": 4096,
        "pool_tokens": 7,
    },
    # Attention to everything; beyond n_local at the constant distance n_local.
    "full": {**_PLAIN, "lookup": "all", "stride": 1},
}

NAMES = tuple(_PRESETS)
"""The presets there are."""


def settings(name: str) -> dict[str, Any]:
    """The settings of one preset, for `MemoryConfig.preset`.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return dict(_PRESETS[name])
    except (KeyError, TypeError):  # TypeError: a list or the like
        raise ConfigError(
            f"no preset is called {name!r}; choose one of {', '.join(NAMES)}"
        ) from None
