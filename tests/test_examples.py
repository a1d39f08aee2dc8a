"""The short examples run to their end on the CPU; what they print looks right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, *arguments: str, folder: Path) -> str:
    line = [sys.executable, "-P", str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # no spinning on a busy machine
    done = subprocess.run(
        line, capture_output=True, text=True, cwd=folder, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quickstart_goes_on_the_next_day(tmp_path: Path) -> None:
    today, tomorrow = run("quickstart.py", "chats", folder=tmp_path).split("-- the next day --")
    assert today.count("> ") == 2
    assert "tokens from memory" in tomorrow
    assert (tmp_path / "chats" / "longmem.db").is_file()


def test_a_transcript_is_read_and_asked(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "Our bank pin is 40172."}
    (tmp_path / "talk.jsonl").write_text(json.dumps(turn) + "\n\n")
    question = "What is our bank pin?"
    printed = run("import_transcript.py", "talk.jsonl", question, folder=tmp_path)
    assert "tokens read" in printed and f"> {question}" in printed
