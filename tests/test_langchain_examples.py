"""The examples for LangChain and LangGraph run to their end with nano; what they print is so."""

from __future__ import annotations

import re
from pathlib import Path

from test_examples import run


def test_the_langchain_example_remembers_on_the_next_day(tmp_path: Path) -> None:
    first, second, _ = run("langchain_chat.py", "chats", folder=tmp_path).split("--\n")
    assert first.count("> ") == 2
    answer, counts, fitted = second.splitlines()
    assert "482913" in answer
    read, cached = map(int, re.findall(r"\d+", counts))
    assert read < cached
    assert fitted == "town='Bergen'"
    assert (tmp_path / "chats" / "longmem.db").is_file()


def test_the_langgraph_example_branches_and_copies(tmp_path: Path) -> None:
    lines = run("langgraph_agent.py", folder=tmp_path).splitlines()
    said = dict(zip(lines[0:-1:2], lines[1:-1:2], strict=True))
    assert said["> What is Bob's locker code?"].startswith("771204.  [alice: ")  # from the tool
    branch = re.search(r"\[alice(~[0-9a-f]{8}): ", said["> My locker code is now 555123."])
    assert branch is not None
    assert said["> What is my locker code?"].startswith(f"555123.  [bob{branch[1]}: ")
    assert lines[-1] == f"left: bob bob{branch[1]}"
