"""The HTTP server: OpenAI's dialects over one `Dialogue`. Needs the extra ``server``.

`create_app` builds the application, `run` serves it until SIGTERM, letting running replies end.
"""

from __future__ import annotations

try:
    import fastapi as _fastapi  # noqa: F401  only whether it is there
    import prometheus_client as _prometheus  # noqa: F401
    import uvicorn as _uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"the server needs {error.name}, which is not installed: pip install 'longmem[server]'"
    ) from error

from longmem.adapters.server.app import create_app
from longmem.adapters.server.serve import run
from longmem.adapters.server.settings import ApiKey, Settings

__all__ = ["ApiKey", "Settings", "create_app", "run"]
