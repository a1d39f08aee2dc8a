"""The Python of docs/store.md runs and shows what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

TEXT = (Path(__file__).parent.parent / "docs" / "store.md").read_text("utf-8")


def test_the_blocks_run() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert names["newest"] == [("2026/03", {"n": 3})]
    assert names["rest"] == [("2026/02", {"n": 2})]
