"""Measurements that need a process of their own: ``python -m longmem.bench.child``.

Reads a request as JSON on standard input, prints its figures as JSON on the last line of standard
output, and how far it is on standard error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longmem.errors import ConfigError

if TYPE_CHECKING:
    from longmem.bench.chat_stream import Report
    from longmem.engine import Engine

NANO = "nano"


@dataclass(frozen=True)
class EngineSpec:
    """How another process loads the same engine.

    Args:
        model: "nano", a folder, or a Hugging Face name.
        device: as `Engine.from_pretrained`.
        memory: settings, JSON-able.
        threads: of torch.
    """

    model: str
    device: str | None
    memory: Mapping[str, Any]
    threads: int

    def load(self) -> Engine:
        """The engine, warm: its fingerprint is known and a first short reply was decoded."""
        import torch
        from transformers.utils import logging

        from longmem.config import MemoryConfig
        from longmem.engine import Engine

        torch.set_num_threads(self.threads)
        logging.disable_progress_bar()
        config = MemoryConfig(**self.memory)
        if self.model == NANO:
            engine = Engine.nano(config, device=self.device)
        else:
            engine = Engine.from_pretrained(self.model, config, device=self.device)
        _ = engine.fingerprint
        with engine.session("warm") as session:
            session.ask("Good morning.", max_new_tokens=8)
        return engine


def spec_of(engine: Engine, model: str) -> EngineSpec:
    """The spec of an engine that was loaded from `model`."""
    import torch

    device = str(engine.device)
    return EngineSpec(model, device, engine.config.model_dump(mode="json"), torch.get_num_threads())


def ask_child(task: str, spec: EngineSpec, **arguments: Any) -> Any:
    """Run `task` in a new process and return what it found.

    Args:
        task: "resume" or "stream".
        arguments: of the task, JSON-able.

    Raises:
        ConfigError: it failed; what it said stands on standard error.
    """
    request = json.dumps({"task": task, "engine": asdict(spec), "arguments": arguments})
    command = [sys.executable, "-P", "-m", "longmem.bench.child"]
    done = subprocess.run(command, input=request, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ConfigError(
            f"the process that measures {task!r} ended with status {done.returncode}; its last lines "
            "above say why"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _stream(engine: Engine, folder: str, lengths: list[int], report: Report) -> dict[str, Any]:
    from longmem.bench.footprint import resident
    from longmem.bench.shelf import Shelf
    from longmem.bench.stream import stream

    start = resident()
    samples = stream(engine, Shelf(Path(folder), engine), lengths, report)
    held = start.peak if start.now is None else start.now
    return {"start": held, "samples": [asdict(sample) for sample in samples]}


def _resume(engine: Engine, folder: str, report: Report, **options: int) -> dict[str, Any]:
    from longmem.bench.resume import resume_here

    report(f"resume: {folder}")
    return asdict(resume_here(engine, Path(folder), **options))


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    tasks: dict[str, Callable[..., dict[str, Any]]] = {"stream": _stream, "resume": _resume}
    task = tasks[request["task"]]
    engine = EngineSpec(**request["engine"]).load()
    found = task(engine, report=_to_stderr, **request["arguments"])
    print(json.dumps(found), flush=True)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
