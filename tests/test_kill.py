"""kill -9 while replies are being committed: what was acknowledged is there, and whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longmem.stores import SQLiteStore

KILLS = int(os.environ.get("LONGMEM_KILLS", "6"))
WRITER = """
import sys, torch
sys.path.insert(0, {tests!r})
from conftest import SMALL
from longmem import Engine
from longmem.stores import SQLiteStore
torch.set_num_threads(1)
engine = Engine.nano(SMALL)
with SQLiteStore({store!r}) as store, engine.session("a", store=store) as session:
    print(f"ready {{session.stats().turns}}\\n", end="", flush=True)
    while True:
        n = session.stats().turns
        reply = session.ask(f"Message {{n}}: how are you?", max_new_tokens=4)
        print(f"done {{reply.turn}}\\n", end="", flush=True)
"""


@pytest.mark.timeout(1200)
def test_every_acknowledged_reply_survives_a_kill_at_a_random_moment(engine, tmp_path):
    """LONGMEM_KILLS sets how many processes are killed (docs/performance.md has a run of 50)."""
    path, rng = tmp_path / "s", random.Random(0)
    code = WRITER.format(tests=str(Path(__file__).parent), store=str(path))
    acknowledged = 0
    for _ in range(KILLS):
        lines = run_and_kill(code, rng)
        acknowledged = max([acknowledged, *(int(x.split()[1]) + 1 for x in lines if "done" in x)])
        with SQLiteStore(path) as store:
            assert store.verify() == []
            with engine.session("a", store=store) as session:
                turns = session.turns()
                assert acknowledged <= len(turns) <= acknowledged + 2
                acknowledged = len(turns)
                check_whole(turns)
                session.ask("Still there?", commit=False, max_new_tokens=2)
    assert acknowledged > 0


def run_and_kill(code: str, rng: random.Random) -> list[str]:
    """Start a writer, kill it a random while after it began to write; its output lines."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()
        assert first.startswith("ready"), first
        time.sleep(rng.uniform(0.02, 0.9))
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read()
        return [first, *rest.splitlines()]


def check_whole(turns) -> None:
    """Exchanges come in pairs: a question and its reply, never one of them."""
    assert len(turns) % 2 == 0
    for i, (question, reply) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
        assert (question.role, reply.role) == ("user", "assistant")
        assert question.text == f"Message {2 * i}: how are you?"
        assert json.loads(json.dumps(dict(reply.extra)))["finish_reason"] in ("eos", "length")
