"""One decode step of a layer by kernels: the sessions' buffers as tables of addresses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longmem.memory.block_layer import BlockLayer
from longmem.memory.layer import LayerMemory
from longmem.memory.reading import AttentionCall
from longmem.ops.rotary import Angles
from longmem.ops.scratch import Scratch
from longmem.ops.step_attention import Place, Stepped, upload


def attend_by_kernels(
    layers: Sequence[LayerMemory],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    angles: Angles | None,
    call: AttentionCall,
    scratch: Scratch,
) -> Stepped:
    """Take in one token of each of S sessions and let it attend; attention sums grow in place.

    Args:
        layers: the sessions' layers; each has room for a token.
        q, k, v: ``[S, H, D]``, ``[S, H_kv, D]`` un-rotated.
        angles: see `longmem.ops.step_attention.stepping.take_in`.
        call: the layer's attention settings.
        scratch: what is computed and returned in.
    """
    # brings Triton, which only these layers need
    from longmem.ops.step_attention.stepping import attend_places, take_in

    kind, rows = layers[0], [place_of(layer) for layer in layers]
    places = upload(rows, kind.spec.kv_heads, scratch, q.device)
    near, far = (scratch.take(name, tuple(q.shape), q.dtype, q.device) for name in ("near", "far"))
    rotary = kind.spec.rotary
    style = "half" if rotary is None else rotary.style
    take_in(q, k, v, angles, places, near, far, style=style)
    for layer in layers:
        layer.local.grown(1)
    return attend_places(
        near, far, places,
        n_local=kind.n_local, pending=isinstance(kind, BlockLayer),
        columns=max(row.columns for row in rows) + 1,
        scaling=call.scaling, softcap=call.softcap, sinks=call.sinks,
        mass_of=kind.mass_of, want_lse=kind.want_lse, scratch=scratch,
    )  # fmt: skip


def place_of(layer: LayerMemory) -> Place:
    """Where a layer's working set lies now."""
    local = layer.local
    if not isinstance(layer, BlockLayer):
        return Place(0, 0, *local.addresses, 0, *local.rows, 0)
    far = layer.working_set
    k, v, room = far.addresses
    lengths = len(far) if far.lengths is None else far.lengths
    return Place(k, v, *local.addresses, room, *local.rows, lengths)
