"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_QUIET: dict[str, Any] = {"check": True, "capture_output": True, "text": True, "timeout": 10}


def machine() -> dict[str, object]:
    """Processor, threads and versions, JSON-able."""
    import torch
    import transformers

    import longmem

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": transformers.__version__,
        "longmem": longmem.__version__,
    }


def command() -> str:
    """The command line this process was started with."""
    return " ".join(["longmem", *sys.argv[1:]])


def commit() -> str:
    """The commit of the source this ran from, "-dirty" with changes; a release outside of git."""
    import longmem

    folder = Path(longmem.__file__).parent
    ask = ["git", "-C", str(folder)]
    try:
        subprocess.run([*ask, "ls-files", "--error-unmatch", "__init__.py"], **_QUIET)  # is it ours
        described = subprocess.run([*ask, "describe", "--always", "--dirty"], **_QUIET)
    except (OSError, subprocess.SubprocessError):
        return f"release {longmem.__version__}"
    return str(described.stdout).strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
