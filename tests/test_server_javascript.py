"""The official JavaScript client from npm drives the server; its checks stand in tests/js."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from live_server import LiveServer
from server_process import Faults

SOURCE = Path(__file__).parent / "js"
FILES = ("package.json", "package-lock.json", "client.test.mjs")
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call>'


@pytest.fixture(scope="module")
def folder(pytestconfig: pytest.Config) -> Path:
    """A folder with the client installed, kept between test runs as long as its version stays."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed, and the JavaScript client needs it")
    assert pytestconfig.cache is not None
    lock = (SOURCE / "package-lock.json").read_bytes()
    kept = pytestconfig.cache.mkdir(f"js-{hashlib.sha256(lock).hexdigest()[:12]}")
    for name in FILES:
        shutil.copy(SOURCE / name, kept)
    if not (kept / "installed").exists():
        command = ["npm", "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=kept, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"npm could not install the client: {done.stderr}"
        (kept / "installed").touch()
    return kept


def script(read: str) -> str:
    """Calls the tool when it is told to, thanks for what it brings, and echoes all else."""
    said, _, rest = read.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")
    if "<|im_start|>tool" in rest:
        return "It is dry."
    return CALL if said == "call the tool" else f"You said: {said}"


def test_the_javascript_client_drives_the_server(folder: Path, tmp_path: Path) -> None:
    server = LiveServer(tmp_path, keys={"js": "key-of-js-1"})
    server.app.add_middleware(Faults)
    server.engine.script = script
    with server:
        env = dict(os.environ, LONGMEM_URL=server.url, LONGMEM_KEY="key-of-js-1")
        done = subprocess.run(
            ["node", "--test", "--test-reporter=spec", "client.test.mjs"],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass 8" in done.stdout and "skipped 0" in done.stdout
