"""Parts of the server that need no server: limits over time, strict JSON, errors, sampling, pings."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from longmem import Engine, errors
from longmem.adapters.server import ApiKey, Settings
from longmem.adapters.server.errors import ApiError, as_api_error
from longmem.adapters.server.event_stream import _with_pings, frame
from longmem.adapters.server.exchange import as_header, from_header
from longmem.adapters.server.sampling import SamplingFields, to_sampling
from longmem.adapters.server.strict_json import strict_json
from longmem.adapters.server.traffic import Traffic
from longmem.cli.serve import with_memory


def test_the_rate_is_a_bucket_that_fills_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    traffic = Traffic()
    for _ in range(6):
        traffic.enter("a", 100, 6)
    with pytest.raises(ApiError) as refused:
        traffic.enter("a", 100, 6)
    assert (refused.value.status, refused.value.headers["retry-after-ms"]) == (429, "10000")
    traffic.enter("b", 100, 6)  # another owner has a bucket of its own
    now[0] = 10.0
    traffic.enter("a", 100, 6)
    with pytest.raises(ApiError):
        traffic.enter("a", 100, 6)
    assert traffic.running == 8


def test_a_request_that_is_sent_away_does_not_count() -> None:
    traffic = Traffic()
    traffic.enter("a", 1, None)
    for _ in range(3):
        with pytest.raises(ApiError):
            traffic.enter("a", 1, None)
    traffic.leave("a")
    traffic.enter("a", 1, None)
    traffic.draining = True
    with pytest.raises(ApiError) as refused:
        traffic.enter("b", 1, None)
    assert (refused.value.status, traffic.running) == (503, 1)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.SessionNotFoundError("x"), 404, "session_not_found"),
        (errors.SessionInUseError("x"), 409, "session_in_use"),
        (errors.StaleWriterError("x"), 409, "session_moved_on"),
        (errors.FingerprintMismatchError("x"), 409, "session_of_another_model"),
        (errors.TurnTooLargeError("x"), 413, "turn_too_large"),
        (errors.InputError("x"), 400, "invalid_input"),
        (errors.ConfigError("x"), 400, "invalid_value"),
        (errors.StoreFullError("x"), 507, "store_full"),
        (errors.CorruptDataError("x"), 500, "corrupt_data"),
        (errors.StoreError("x"), 500, "server_error"),
        (errors.SystemChangedError("x"), 409, "system_prompt_changed"),
        (errors.DivergedError("x"), 409, "diverged"),
        (RuntimeError("a secret"), 500, "internal_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_has_a_status_and_a_code(error: Exception, status: int, code: str) -> None:
    told = as_api_error(error)
    assert (told.status, told.code) == (status, code)
    assert "secret" not in json.dumps(told.envelope)
    if told.status in (500, 507):
        assert told.code == "internal_error" or told.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "body", [b'{"a": [1, 2.5, "x", null]}', '["é", "\\ud83d\\ude00"]'.encode()]
)
def test_strict_json_takes_what_the_standard_allows(body: bytes) -> None:
    assert strict_json(body, 100) == json.loads(body)


def test_sampling_is_greedy_unless_asked_otherwise() -> None:
    settings = Settings(default_tokens=7, max_tokens=50)
    plain = to_sampling(settings, SamplingFields(), None)
    assert plain.greedy and plain.max_new_tokens == 7
    assert to_sampling(settings, SamplingFields(top_p=0.5), 50).temperature == 1.0
    assert to_sampling(settings, SamplingFields(temperature=0, top_p=0.5, top_k=3), 1).greedy
    assert to_sampling(settings, SamplingFields(temperature=1.5, top_p=0), 1).greedy
    assert to_sampling(settings, SamplingFields(temperature=1e-300), 1).greedy
    hot = to_sampling(settings, SamplingFields(temperature=1.5, top_k=-1, seed=-1), 1, ["x"])
    assert (hot.temperature, hot.top_k, hot.stop) == (1.5, None, ("x",))
    assert hot.seed is not None and hot.seed >= 0
    with pytest.raises(ApiError, match="51"):
        to_sampling(settings, SamplingFields(), 51)


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in (
        {"rate": 0},
        {"max_body": 0},
        {"max_values": 0},
        {"header_seconds": 0},
        {"max_concurrent": -1},
        {"send_seconds": float("nan")},
    ):
        with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
            Settings(**wrong)
    with pytest.raises(errors.ConfigError, match="no API key"):
        Settings(operators=("nobody",))
    assert "long-enough" not in repr(Settings(keys=(ApiKey("a", "long-enough"),)))
    two = (ApiKey("a", "long-enough"), ApiKey("b", "long-enough-2"))
    assert Settings(keys=two).metrics_owners == frozenset()
    assert Settings(keys=two, operators=("b",)).metrics_owners == {"b"}
    assert Settings(keys=two[:1]).metrics_owners == {"a"}


def test_names_of_sessions_survive_headers() -> None:
    for name in ("plain", "Zürich ☃", "日本"):
        assert from_header(as_header(name)) == name
    assert from_header("\xff") == "\xff"


def test_a_silent_stream_sends_comments() -> None:
    async def slow() -> AsyncIterator[str]:
        await asyncio.sleep(0.05)
        yield frame("x", "named")

    async def collect() -> list[str]:
        return [text async for text in _with_pings(slow(), 0.01)]

    *pings, last = asyncio.run(collect())
    assert pings and set(pings) == {": ping\n\n"}
    assert last == "event: named\ndata: x\n\n"


def test_without_the_extra_the_message_names_it() -> None:
    code = "import sys; sys.modules['fastapi'] = None; sys.argv = ['longmem', 'serve']; import longmem.cli; "
    done = subprocess.run(
        [sys.executable, "-P", "-c", code + "longmem.cli.main()"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("longmem: the server needs fastapi")
    assert "pip install 'longmem[server]'" in done.stderr


def test_the_command_changes_memory_settings() -> None:
    engine = Engine.nano()
    assert with_memory(engine, "longmem", []) is engine
    assert with_memory(engine, "longmem", ["topk=1"]).config.topk == 1
    assert with_memory(engine, "streaming-llm", []).config.topk == 0
    with pytest.raises(errors.ConfigError, match="nonsense"):
        with_memory(engine, "longmem", ["nonsense=1"])
