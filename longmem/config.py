"""`MemoryConfig`: every setting of the memory, with unit, default and source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from longmem.settings import Settings

PositiveInt = Annotated[int, Field(ge=1)]


class Compressive(Settings):
    """Settings of the compressive memory (Infini-attention, arXiv 2404.07143). None is stored: M and z
    are folded again from stored keys and values when a session is resumed."""

    rule: Literal["linear", "delta", "delta_literal"] = "linear"
    """How M is updated: equation 8; equation 9 with ARMT's correction of z (arXiv 2407.04841); equation 9
    as printed. The correction needs feature_map = "dpfp" and chunk <= 16, else z stays that of the first
    chunk (docs/methods.md)."""
    feature_map: Literal["elu", "dpfp", "learned"] = "elu"
    """sigma: ELU + 1 (the paper), DPFP-3 (ARMT), or the maps of the gate file (LoLCATs)."""
    mix: Literal["gate", "lse"] = "gate"
    """How it joins attention: the paper's gate per head, or as one more attended group of mass
    exp(c_h) phi(q) z, of what retention dropped (after LESS, arXiv 2402.09398)."""
    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of M and z that outlives one chunk; 1 forgets nothing."""
    chunk: PositiveInt = 128
    """Tokens folded at once, on an absolute grid. With window = "segment" it is n_local."""
    gates: str | Path | None = None
    """A gate file of this model (safetensors); None leaves every gate closed."""

    @model_validator(mode="after")
    def _rule_allows_decay(self) -> Self:
        if self.rule == "delta" and self.decay < 1:
            raise ValueError(
                'rule="delta" with decay < 1 grows without bound, because z forgets what M is '
                'corrected by; choose "linear" or "delta_literal", or decay = 1'
            )
        return self

    @model_validator(mode="after")
    def _gates_have_a_path(self) -> Self:
        if self.gates is not None and not str(self.gates):
            raise ValueError("gates is an empty path; name a gate file, or give None for none")
        return self


class MemoryConfig(Settings):
    """Settings of one engine's memory. Frozen; `replace` makes a changed copy.

    Those marked (stored) decide what is on disk: a session written under other values is refused
    and has to be rebuilt. All others may change from one process to the next.
    """

    n_init: Annotated[int, Field(ge=0)] = 128
    """Initial tokens, always attended, in tokens (stored). InfLLM's n_init; at least the system turn."""
    max_init: PositiveInt = 4096
    """Longest system turn that can be pinned as initial tokens, in tokens."""
    n_local: PositiveInt = 4096
    """Local window in tokens, attended at true distances; within the trained positions (stored). InfLLM."""
    block_size: PositiveInt = 128
    """Most tokens in a semantic block (stored). InfLLM."""
    window: Literal["sliding", "segment"] = "sliding"
    """What the window of a token is: the last n_local tokens (InfLLM), or its own segment of an absolute
    grid of n_local tokens (Infini-attention; then topk = 0) (stored)."""
    block_boundaries: Literal["fixed", "turn", "surprise"] = "turn"
    """Where blocks end: every `block_size` tokens, or also at each turn, or also there and before tokens
    the model did not expect (EM-LLM) (stored)."""
    min_block: PositiveInt = 1
    """Fewest tokens of a block that ends at a turn or a surprise (stored)."""
    surprise_gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """How many standard deviations above the mean a token's surprise starts a block (stored). EM-LLM."""
    surprise_window: Annotated[int, Field(ge=2)] = 64
    """Tokens that mean and deviation of the surprise are taken over (stored). EM-LLM."""
    refine: Literal["none", "modularity", "conductance"] = "none"
    """What surprise boundaries are moved to improve (stored). EM-LLM."""
    topk: Annotated[int, Field(ge=0)] = 16
    """Blocks one look-up adds to a layer's working set; 0 attends to none. InfLLM."""
    contiguity: Annotated[int, Field(ge=0)] = 0
    """Neighbours of the looked-up blocks that are added, in blocks. EM-LLM's contiguity buffer."""
    max_blocks: PositiveInt | None = None
    """Most closed blocks a session can look up; older ones are dropped. None keeps all."""
    repr_topk: PositiveInt = 4
    """Representative keys kept per block and KV head (stored); `block_size` or more keeps all. InfLLM."""
    repr_by: Literal["attention", "logits"] = "attention"
    """What makes a key representative: the attention it received while in the window (InfLLM's code), or
    the mean of the raw products q k (InfLLM's paper, equation 1) (stored)."""
    scorer: str = "soft_vote"
    """Name of the block scorer; see `longmem.retrieval`."""
    selection: Literal["layer", "kv_head"] = "layer"
    """Who shares a choice of blocks: all heads of a layer, or the query heads of each KV head."""
    lookup: Literal["topk", "all"] = "topk"
    """What a refresh attends to: the `topk` best blocks, or all (full attention; Recycled Attention)."""
    lookup_span: PositiveInt = 512
    """Most tokens read under one look-up, in tokens (stored with each turn)."""
    two_level_above: Annotated[int, Field(ge=0)] | Literal["auto"] | None = "auto"
    """Blocks to choose from above which look-ups read groups of representatives first; None: never. Of the
    scorers "soft_vote" can. "auto": 5,000 on a CPU, from where on nothing is lost on the questions of
    docs/performance.md; never where kernels scan all representatives (docs/gpu.md)."""
    two_level_shelf: Annotated[int, Field(ge=1, le=8191)] = 1024
    """Consecutive blocks whose representatives are grouped together, once; four such shelves are merged
    into one later."""
    two_level_group: PositiveInt = 64
    """Representatives per group, in rows. After a change sessions are grouped anew when they are opened."""
    two_level_probe: PositiveInt = 128
    """Groups per KV head whose representatives a two-level look-up reads."""
    two_level_probe_reading: PositiveInt = 16
    """As two_level_probe, for look-ups of spans of several tokens, which are read, not decoded: what a
    reply needs is found by the look-ups of its own steps."""
    lookup_layers: Literal["all"] | tuple[int, ...] = "all"
    """Layers that look blocks up (stored). The others attend to the blocks chosen by the nearest such layer
    below them, those below the first to none."""
    far_positions: Literal["constant", "ordered"] = "constant"
    """Distance at which looked-up blocks are seen: all at n_local (InfLLM), or in stream order at
    n_local + rank * block_size, rank 0 being the newest."""
    recycling: str = "fixed"
    """Name of the policy that decides when a reply looks blocks up again; see `longmem.recycling`."""
    stride: PositiveInt = 8
    """Decode steps under one look-up, or between two checks; 1 refreshes at each. Recycled Attention."""
    similarity: Annotated[float, Field(ge=-1, le=1)] = 0.8
    """Cosine of a layer's mean query to that of its last look-up below which "dynamic" refreshes it."""
    lookup_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the bytes a reply moves that "budget" lets look-ups have; it has no use for `stride`."""
    topk_tokens: PositiveInt | None = None
    """Tokens per KV head that recycled steps attend to, in tokens; None: the whole working set. Recycled
    Attention."""
    pool_tokens: PositiveInt = 1
    """Neighbouring tokens whose scores are max-pooled before `topk_tokens` are taken; odd. SnapKV: 7."""
    compressive: Compressive | None = None
    """The compressive memory; None has none. Infini-attention."""
    codec: Literal["exact", "bf16", "int8", "int4"] = "exact"
    """How closed blocks are kept beyond the device and attended to: as the model made them, rounded to
    bfloat16, or in 8 or 4 bits (stored). KIVI, arXiv 2402.02750; see `longmem.codec`."""
    device_bytes: Annotated[int, Field(ge=0)] | None = None
    """Bytes of closed blocks one session keeps on the model's device, the block index counted inside if it
    lies there. None: 0 on a CPU, whose memory is the host's, 1 GiB elsewhere."""
    host_bytes: Annotated[int, Field(ge=0)] = 4 * 2**30
    """Bytes of closed blocks one session keeps in host memory once they are durable in a store; on a CPU
    the block index counts inside. 0 reads every block from the store."""
    max_turn_bytes: PositiveInt = 4 * 2**20
    """Longest text of one turn, in UTF-8 bytes."""
    max_bytes: PositiveInt | None = None
    """Most bytes a session may hold in its store, files and rows; an exchange that would exceed it is
    refused. None: no limit. Kept with the session; what it was last opened with holds."""
    ttl: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds after its last commit when a session may be deleted by `Store.sweep`; None: never. Kept
    with the session; what it was last opened with holds."""
    keep_reasoning: bool = True
    """Whether the reasoning of a reply stays in memory (stored); `Reply.text` never has it."""

    @model_validator(mode="after")
    def _layers_ascend(self) -> Self:
        layers = self.lookup_layers
        if layers != "all" and (not layers or sorted(set(layers)) != list(layers) or layers[0] < 0):
            raise ValueError('lookup_layers must be "all" or ascending layer numbers, like (2, 3)')
        return self

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        chosen = self.topk + self.contiguity if self.lookup == "topk" else 0
        if self.max_blocks is not None and self.max_blocks < chosen:
            raise ValueError(
                f"max_blocks = {self.max_blocks} is below topk + contiguity = {chosen}: a look-up could "
                "not fill the working set; raise it"
            )
        if self.lookup == "all" and self.far_positions == "ordered":
            raise ValueError(
                'lookup="all" needs far_positions="constant": no position is left for all'
            )
        if self.window == "segment" and (
            self.topk
            or self.lookup == "all"
            or self.max_blocks
            or self.block_boundaries == "surprise"
        ):
            raise ValueError(
                'window="segment" has no blocks: set topk=0, lookup="topk", max_blocks=None and no surprise '
                "boundaries"
            )
        if self.block_boundaries == "surprise" and self.n_local <= self.block_size:
            raise ValueError(
                'block_boundaries="surprise" needs n_local > block_size, so that boundaries are known '
                f"before blocks close (n_local = {self.n_local}, block_size = {self.block_size})"
            )
        if self.min_block > self.block_size:
            raise ValueError(
                f"min_block = {self.min_block} is above block_size = {self.block_size}"
            )
        if self.pool_tokens % 2 == 0:
            raise ValueError(f"pool_tokens = {self.pool_tokens} is even; choose an odd number")
        return self

    @model_validator(mode="after")
    def _compressive_is_fed(self) -> Self:
        if self.compressive is None:
            return self
        blocks = self.topk > 0 or self.lookup == "all"
        if self.compressive.mix == "lse" and blocks and self.max_blocks is None:
            raise ValueError(
                'mix="lse" holds what a block limit drops, and there is none: set max_blocks, or topk = 0 '
                'and lookup="topk"'
            )
        if self.codec != "exact":
            raise ValueError(
                f'codec="{self.codec}" does not go with a compressive memory, which is folded again from '
                'exact keys and values when a session is resumed; set codec="exact" or compressive=None'
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_without_effect(self) -> Self:
        if self.contiguity and not self.topk and self.lookup == "topk":
            raise ValueError(
                f"contiguity = {self.contiguity} adds neighbours to looked-up blocks, and topk = 0 looks "
                "none up; set contiguity = 0, too"
            )
        if self.refine != "none" and self.block_boundaries != "surprise":
            raise ValueError(
                f'refine="{self.refine}" moves boundaries of surprise, and block_boundaries is '
                f'"{self.block_boundaries}"; set refine="none", or block_boundaries="surprise"'
            )
        return self

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MemoryConfig:
        """A method of the field as its paper has it; see `longmem.presets` for the names.

        Args:
            name: "longmem", "infllm", "em-llm", "streaming-llm", "infini", "recycled" or "full".
            changes: settings to change, such as sizes that fit a small model. Of a compressive memory,
                a mapping or `Compressive`, what is given is changed, and the rest stays the preset's.

        Raises:
            ConfigError: there is no preset of that name, or a value is out of range.
        """
        from longmem.presets import settings

        values = settings(name)
        inner, base = changes.get("compressive"), values.get("compressive")
        if isinstance(inner, Compressive):
            inner = inner.model_dump(exclude_unset=True)
        if isinstance(inner, dict) and base is not None:
            changes["compressive"] = {**base, **inner}
        return cls(**{**values, **changes})

    def replace(self, **changes: Any) -> MemoryConfig:
        """A copy with some settings changed, checked like a new one.

        Raises:
            ConfigError: a value is out of range or a name unknown.
        """
        return MemoryConfig(**{**self.model_dump(), **changes})
