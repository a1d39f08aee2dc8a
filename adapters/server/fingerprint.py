"""One short word for everything that a reply's text depends on, the seed apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping


def system_fingerprint(parts: Mapping[str, str]) -> str:
    """``fp_`` and ten hexadecimal digits, of `Engine.fingerprint`."""
    text = json.dumps(dict(parts), sort_keys=True)
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:10]}"
