"""Sampling as chat APIs speak of it, put into `Sampling`."""

from __future__ import annotations

from typing import Any

from longmem.sampling import Sampling

_FILTERS = ("top_k", "top_p", "min_p")


def sampling_of(base: Sampling, **changes: Any) -> Sampling:
    """`base` with what a request asks for; None leaves a field as it is.

    Chat APIs take a temperature of 0 together with top_p, and top_p alone, which `Sampling` refuses:
    here 0 stays greedy and leaves the filters out, and a filter alone samples at temperature 1.

    Args:
        base: the model's own settings.
        changes: fields of `Sampling`.

    Raises:
        ConfigError: a value is out of range, or there is no such field.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if "temperature" not in given and any(given.get(name) for name in _FILTERS):
        given["temperature"] = base.temperature or 1.0
    if given.get("temperature") == 0:
        given |= dict.fromkeys(_FILTERS)
    return base.replace(**given)
