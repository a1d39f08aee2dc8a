"""`MemoryConfig`: every setting of the memory, with unit, default and source."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longmem.errors import ConfigError

PositiveInt = Annotated[int, Field(ge=1)]


class MemoryConfig(BaseModel):
    """Settings of one engine's memory. Frozen; `replace` makes a changed copy.

    Those marked (stored) decide what is on disk: a session written under other values is refused
    and has to be rebuilt. All others may change from one process to the next.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_init: Annotated[int, Field(ge=0)] = 128
    """Initial tokens, always attended, in tokens (stored). InfLLM's n_init; at least the system turn."""
    max_init: PositiveInt = 4096
    """Longest system turn that can be pinned as initial tokens, in tokens."""
    n_local: PositiveInt = 4096
    """Local window in tokens, attended at true distances; within the trained positions (stored). InfLLM."""
    block_size: PositiveInt = 128
    """Most tokens in a semantic block (stored). InfLLM."""
    block_boundaries: Literal["fixed", "turn"] = "fixed"
    """Where blocks end: every `block_size` tokens, or also at each turn (stored)."""
    topk: Annotated[int, Field(ge=0)] = 16
    """Blocks one look-up adds to a layer's working set; 0 attends to none. InfLLM."""
    repr_topk: PositiveInt = 4
    """Representative keys kept per block and KV head (stored); `block_size` or more keeps all. InfLLM."""
    scorer: str = "soft_vote"
    """Name of the block scorer: "soft_vote" (TokenSelect) or "representative" (InfLLM)."""
    lookup_span: PositiveInt = 512
    """Most tokens read under one look-up, in tokens (stored with each turn)."""
    lookup_layers: Literal["all"] | tuple[int, ...] = "all"
    """Layers that look blocks up (stored). The others attend to the blocks chosen by the nearest such layer
    below them, those below the first to none."""
    far_positions: Literal["constant", "ordered"] = "constant"
    """Distance at which looked-up blocks are seen: all at n_local (InfLLM), or in stream order at
    n_local + rank * block_size, rank 0 being the newest."""
    stride: PositiveInt = 8
    """Decode steps under one look-up; 1 refreshes at every token. Recycled Attention."""
    host_bytes: Annotated[int, Field(ge=0)] = 4 * 2**30
    """Bytes of closed blocks one session keeps in host memory once they are durable in a store."""
    max_turn_bytes: PositiveInt = 4 * 2**20
    """Longest text of one turn, in UTF-8 bytes."""
    keep_reasoning: bool = True
    """Whether the reasoning of a reply stays in memory (stored); `Reply.text` never has it."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_readable(error)) from None

    @model_validator(mode="after")
    def _layers_ascend(self) -> Self:
        layers = self.lookup_layers
        if layers != "all" and (not layers or sorted(set(layers)) != list(layers)):
            raise ValueError('lookup_layers must be "all" or ascending layer numbers, like (2, 3)')
        return self

    def replace(self, **changes: Any) -> MemoryConfig:
        """A copy with some settings changed, checked like a new one.

        Raises:
            ConfigError: a value is out of range or a name unknown.
        """
        return MemoryConfig(**{**self.model_dump(), **changes})


def _readable(error: ValidationError) -> str:
    """One line per wrong setting, without pydantic's links."""
    lines = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"]) or "MemoryConfig"
        if item["type"] == "extra_forbidden":
            lines.append(
                f"MemoryConfig has no setting {name!r}; see longmem.MemoryConfig for the list"
            )
        else:
            lines.append(f"MemoryConfig.{name}: {item['msg']} (given: {item.get('input')!r})")
    return "\n".join(lines)
