"""What operations do on pretended devices: which tensors may meet, and when the host has to wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from pretend_cuda import is_pretended
from pretend_device import OnDevice, World, _Ops
from torch import Tensor

aten = torch.ops.aten
_CPU = torch.device("cpu")

WAITING = {
    aten._local_scalar_dense: ("item", 1),
    aten.nonzero: ("nonzero", 1),
    aten.masked_select: ("nonzero", 1),
    aten._unique2: ("unique", 1),
    aten.unique_dim: ("unique", 1),
    aten.unique_consecutive: ("unique", 1),
    aten.equal: ("equal", 1),
    aten.bincount: ("bincount", 1),
    aten.multinomial: ("multinomial", 2),  # it looks whether what it is given are probabilities
}
"""Operations that come back with something the host has to know, and how often they wait."""

_INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)
_STRICT = (aten.cat, aten.stack, aten.embedding, aten.mm, aten.bmm, aten.addmm)
"""Operations that refuse even a CPU tensor of no dimension."""

_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)


def run(world: World, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One operation: refused, or made on the CPU and its result wrapped."""
    flat = _leaves(args, kwargs)
    held = [x for x in flat if isinstance(x, OnDevice)]
    to = kwargs.get("device")
    if not held and not is_pretended(to):
        _touch_host(world, func, args, kwargs)
        return func(*args, **kwargs)
    kind = func.overloadpacket
    world.host.given()
    if kind is aten._to_copy:
        return _to_copy(world, *args, **kwargs)
    if kind is aten.copy_:
        return _copy_(world, *args, **kwargs)
    if kind not in _INDEXING and _is_composed(func):
        with _Ops():
            return func.decompose(*args, **kwargs)
    if kind in (aten.record_stream,):
        return None
    device = held[0].device if held else world.device(to)
    if kind in _INDEXING:
        args = _indices(world, kind, device, args)
        flat = _leaves(args, kwargs)
    _refuse_mixing(kind, device, flat)
    if kind in WAITING:
        why, times = WAITING[kind]
        for _ in range(times):
            world.wait(why)
    if kind is aten.repeat_interleave and kwargs.get("output_size") is None:
        world.wait("repeat_interleave")
    out_device = device if to is None else world.device(to)
    return _computed(func, args, kwargs, out_device, held)


def _computed(func: Any, args: Any, kwargs: Any, device: torch.device, held: list[OnDevice]) -> Any:
    """Run on the CPU; tensors that were given and come back are those that were given."""
    given = {id(x.inner): x for x in held}
    plain = {name: _each(x, _plain) for name, x in kwargs.items()}
    if plain.get("device") is not None:
        plain["device"] = _CPU
    result = func(*(_each(x, _plain) for x in args), **plain)
    for x in held:
        if x.shape != x.inner.shape:
            raise NotImplementedError(f"{func} changes the shape of its argument in place")
    if device.type != "cuda":
        return result

    def wrapped(x: Any) -> Any:
        if isinstance(x, Tensor):
            return given[id(x)] if id(x) in given else OnDevice(x, device)
        return x

    return _each(result, wrapped)


def _each(x: Any, do: Callable[[Any], Any]) -> Any:
    """`do` of x, or of what the list x holds: operations take and give nothing deeper."""
    return type(x)(map(do, x)) if isinstance(x, list | tuple) else do(x)


def _leaves(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What was given, and what lists hold that were given."""
    found: list[Any] = []
    for x in (*args, *kwargs.values()):
        (found.extend if isinstance(x, list | tuple) else found.append)(x)
    return found


@cache
def _is_composed(func: Any) -> bool:
    """Whether torch makes it of other operations, which are to be seen."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(func.has_kernel_for_dispatch_key(key))


def _plain(x: Any) -> Any:
    return x.inner if isinstance(x, OnDevice) else x


def _refuse_mixing(kind: Any, device: torch.device, flat: Sequence[Any]) -> None:
    for x in flat:
        if isinstance(x, torch.Generator) and x.device.type != device.type:
            raise RuntimeError(f"Expected a '{device}' generator, but found '{x.device}'")
        if not isinstance(x, Tensor) or x.device == device:
            continue
        if x.dim() or isinstance(x, OnDevice) or kind in _STRICT:
            raise RuntimeError(
                f"{kind}: expected all tensors to be on the same device, but found at least two "
                f"devices, {device} and {x.device}"
            )


def _touch_host(world: World, func: Any, args: Any, kwargs: Any) -> None:
    """An operation of the host: it must not touch what copies in the background use."""
    if not world.host.busy:
        return
    schema = func._schema.arguments
    for i, argument in enumerate(schema):
        given = args[i] if i < len(args) else kwargs.get(argument.name)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        for x in _leaves((given,), {}):
            on_host = isinstance(x, Tensor) and not isinstance(x, OnDevice)
            if on_host and (writes or argument.alias_info is None):  # a view reads nothing
                world.host.check(x, writes)


def _indices(world: World, kind: Any, device: torch.device, args: Sequence[Any]) -> Sequence[Any]:
    """Indices on the host are taken to the device; a mask becomes numbers, which the host has to count."""
    filled = kind in (aten.index_put_, aten.index_put, aten._index_put_impl_)
    moved, masks = [], 0
    for index in args[1]:
        if index is None:
            moved.append(None)
            continue
        masks += index.dtype in (torch.bool, torch.uint8)
        if not isinstance(index, OnDevice):
            world.wait("upload")
            world.transfers["upload"] += 1
            index = OnDevice(index, device)
        moved.append(index)
    if masks and not (filled and masks == 1 and args[2].numel() == 1):  # that is a masked_fill
        world.wait("nonzero")
    return (args[0], moved, *args[2:])


def _to_copy(
    world: World, x: Tensor, *, device: Any = None, non_blocking: bool = False, **how: Any
) -> Any:
    target = x.device if device is None else world.device(device)
    pin = how.pop("pin_memory", None)
    transfer(world, x, target, None, non_blocking)
    made = aten._to_copy.default(_plain(x), **how)
    if pin:
        world.host.pin(made)
    return OnDevice(made, target) if target.type == "cuda" else made


def _copy_(world: World, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    on_host = not isinstance(source, OnDevice) and source.dim() == 0 and source.numel() == 1
    if not on_host or not isinstance(target, OnDevice):
        transfer(world, source, target.device, target, non_blocking)
    _plain(target).copy_(_plain(source))
    return target


def transfer(
    world: World, source: Tensor, to: torch.device, target: Tensor | None, non_blocking: bool
) -> None:
    """A copy from device to device. The host waits unless it asked not to and the memory is pinned.

    Kinds: "peer", "within", "upload" and "download" (waited for), "pageable upload" and "pageable
    download" (asked not to wait, but not pinned), "pinned upload", "pinned download".
    """
    here = source.device
    if here == to:
        world.transfers["within"] += 1
    elif here.type == to.type:
        world.transfers["peer"] += 1
    else:
        up = to.type == "cuda"
        way = "upload" if up else "download"
        host = source if up else target
        if not non_blocking:
            world.transfers[way] += 1
            world.wait(way)
        elif host is None or not world.host.is_pinned(host):
            world.transfers[f"pageable {way}"] += 1
            world.wait(f"pageable {way}")
        else:
            world.transfers[f"pinned {way}"] += 1
            world.host.send(host, "up" if up else "down")


def call(world: World, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One call from Python: where torch would start CUDA, or look at memory, the pretence steps in."""
    name = getattr(func, "__name__", "")
    first = args[0] if args else None
    if name in ("to", "cuda") and isinstance(first, Tensor):
        return _moved(world, name, first, args[1:], kwargs)
    if isinstance(first, OnDevice) and name in _LOOKING:
        return _LOOKING[name](world, first, *args[1:], **kwargs)
    if isinstance(first, OnDevice) and name in ("__getitem__", "__setitem__"):
        args = (first, _as_index(args[1]), *args[2:])
    if name in ("tolist", "numpy", "item") and isinstance(first, Tensor):
        world.host.check(first, writes=False)
    if func is Tensor.new_tensor and isinstance(first, OnDevice):
        kwargs = {"device": first.device, **kwargs}
        func, args = torch.tensor, args[1:]
    if is_pretended(kwargs.get("device")):
        return _made(world, func, args, dict(kwargs))
    if kwargs.get("pin_memory"):
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
        return world.host.pin(func(*args, **kwargs))
    return func(*args, **kwargs)


def _as_index(index: Any) -> Any:
    """Lists as the tensors torch makes of them."""
    if isinstance(index, list):
        return torch.tensor(index)
    return tuple(map(_as_index, index)) if isinstance(index, tuple) else index


def _made(world: World, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A new tensor on a device. From numbers of the host it is made there, and copied."""
    device = world.device(kwargs.pop("device"))
    if func in _DATA and not isinstance(args[0], OnDevice):
        world.transfers["upload"] += 1
        world.wait("upload")
    elif args and isinstance(args[0], OnDevice):
        return args[0].to(device, **kwargs) if func in _DATA else _like(func, args, kwargs, device)
    kwargs.pop("pin_memory", None)
    made = func(*args, **kwargs, device=_CPU)
    return OnDevice(made, device) if isinstance(made, Tensor) else made


def _like(func: Any, args: Sequence[Any], kwargs: Any, device: torch.device) -> Tensor:
    return OnDevice(func(*map(_plain, args), **kwargs, device=_CPU), device)


def _moved(world: World, name: str, x: Tensor, args: Sequence[Any], kwargs: Any) -> Tensor:
    kwargs = dict(kwargs)
    copy = kwargs.pop("copy", False)
    kwargs.pop("memory_format", None)
    dtype = None
    if name == "cuda":
        device, non_blocking = (args[0] if args else "cuda"), kwargs.get("non_blocking", False)
    elif args and isinstance(args[0], Tensor):
        device, dtype, non_blocking = args[0].device, args[0].dtype, False
    else:
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    to = x.device if device is None else world.device(device)
    dtype = x.dtype if dtype is None else dtype
    if to == x.device and dtype == x.dtype and not copy:
        return x
    if to == _CPU == x.device:
        return x.to(dtype, copy=copy)
    made = aten._to_copy.default(x, device=to, dtype=dtype, non_blocking=non_blocking)
    assert isinstance(made, Tensor)
    return made


def _tolist(world: World, x: OnDevice) -> Any:
    world.transfers["download"] += 1
    world.wait("download")
    return x.inner.tolist()


def _numpy(world: World, x: OnDevice, *args: Any, **kwargs: Any) -> Any:
    raise TypeError(f"can't convert {x.device} device type tensor to numpy. Use Tensor.cpu() first")


_LOOKING = {
    "tolist": _tolist,
    "numpy": _numpy,
    "__array__": _numpy,
    "data_ptr": lambda world, x: x.inner.data_ptr(),
    "untyped_storage": lambda world, x: x.inner.untyped_storage(),
    "__deepcopy__": lambda world, x, memo: OnDevice.__deepcopy__(x, memo),
    "__repr__": lambda world, x, **_: OnDevice.__repr__(x),
}
