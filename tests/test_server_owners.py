"""Keys and owners: who comes in, how often, and what nobody sees of another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest
from server_process import Server, shared

from longmem.adapters.server import ApiKey, Settings
from longmem.adapters.server.errors import ApiError
from longmem.adapters.server.keys import Keys
from longmem.adapters.server.serve import check_address
from longmem.cli.serve import read_keys
from longmem.errors import ConfigError, InputError

KEYS = {"alice": "alices-long-key", "bob": "bobs-long-key"}
MORE = {"carol": "carols-long-key", "dan": "dans-long-key"}
RATE = 600
OPEN = "/health"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("owners") / "s"
    settings = {"operators": ["alice"], "rate": RATE, "max_concurrent": 2}
    with Server(folder, scripted="echo", keys=KEYS | MORE, settings=settings) as running:
        yield running


def say(client: openai.OpenAI, session: str, text: str) -> openai.types.chat.ChatCompletion:
    return client.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": text}],
        extra_headers={"x-session-id": session},
    )


def test_every_route_but_health_asks_for_a_key(server: Server) -> None:
    bearer = {"authorization": f"Bearer {KEYS['alice']}"}
    with httpx.Client(base_url=server.url) as http:
        paths = http.get("/openapi.json", headers=bearer).json()["paths"]
        routes = {(method, path) for path, methods in paths.items() for method in methods}
        routes |= {("get", p) for p in ("/docs", "/redoc", "/openapi.json", "/nothing", "/metrics")}
        assert len(routes) > 8
        for method, path in routes - {("get", OPEN)}:
            for headers in (
                {},
                {"authorization": "Bearer wrong-key-entirely"},
                {"authorization": "x"},
            ):
                refused = http.request(method, path, headers=headers)
                assert refused.status_code == 401, path
                assert refused.json()["error"]["code"] in ("missing_api_key", "invalid_api_key")
                assert refused.headers["www-authenticate"] == "Bearer"
        assert http.get(OPEN).status_code == 200


def test_the_official_client_is_told_of_a_wrong_key(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        server.openai("some-other-key").models.list()
    assert refused.value.code == "invalid_api_key"
    assert server.openai(KEYS["bob"]).models.list().data


def test_two_owners_use_one_name_and_meet_nothing_of_each_other(server: Server) -> None:
    alice, bob = (server.openai(key) for key in KEYS.values())
    say(alice, "diary", "My secret is kept.")
    before = say(alice, "diary", "More.").usage.prompt_tokens_details.cached_tokens
    first = say(bob, "diary", "Hello")
    assert first.usage.prompt_tokens_details.cached_tokens == 0  # a session of his own
    after = say(alice, "diary", "Even more.").usage.prompt_tokens_details.cached_tokens
    assert after > before
    tried = ("alice:diary", ":diary", "bob:diary")
    for name in tried:  # the names in the store lead nowhere, and say nothing
        assert say(bob, name, "Hello").usage.prompt_tokens_details.cached_tokens == 0


def test_a_repeat_of_anothers_idempotency_key_is_a_request_like_any(server: Server) -> None:
    same = {"Idempotency-Key": "shared-key", "x-session-id": "idem"}
    replies = [
        server.openai(key).chat.completions.create(
            model="nano", messages=[{"role": "user", "content": owner}], extra_headers=same
        )
        for owner, key in KEYS.items()
    ]
    assert [r.choices[0].message.content for r in replies] == ["You said: alice", "You said: bob"]


def test_figures_of_all_are_for_the_operator(server: Server) -> None:
    with httpx.Client(base_url=server.url) as http:
        alice, bob = ({"authorization": f"Bearer {key}"} for key in KEYS.values())
        refused = http.get("/metrics", headers=bob)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "operators_only")
        assert "longmem_num_requests_running" in http.get("/metrics", headers=alice).text


def test_more_requests_than_the_rate_are_sent_away_and_others_are_not(server: Server) -> None:
    carol = server.openai(MORE["carol"])
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(4 * RATE):
            carol.models.list()
    assert refused.value.code == "rate_limit_exceeded"
    assert 0 < int(refused.value.response.headers["retry-after-ms"]) <= 100
    assert server.openai(KEYS["bob"]).models.list().data
    assert server.openai(MORE["carol"], max_retries=10).models.list().data


def test_more_requests_at_once_than_allowed_are_sent_away(server: Server) -> None:
    dan = server.openai(MORE["dan"])
    streams = [
        dan.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": "word " * 200}], stream=True
        )
        for _ in range(2)
    ]
    with pytest.raises(openai.RateLimitError) as refused:
        dan.models.list()
    assert refused.value.code == "concurrency_limit_exceeded"
    assert int(refused.value.response.headers["retry-after-ms"]) > 0
    assert server.openai(KEYS["bob"]).models.list().data
    for stream in streams:
        stream.close()
    assert server.openai(MORE["dan"], max_retries=50).models.list().data


def test_without_keys_only_this_machine_is_listened_to_and_named() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigError, match="--api-key"):
            check_address(host, Settings())
        check_address(host, Settings(keys=(ApiKey("a", "long-enough"),)))
    for name, status in (("localhost", 200), ("127.0.0.1:1", 200), ("evil.example", 403)):
        found = httpx.get(f"{shared('echo').url}/v1/models", headers={"host": name})
        assert found.status_code == status


def test_keys_come_from_options_a_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("# keys\nbob:bobs-long-key\n\n")
    monkeypatch.setenv("LONGMEM_API_KEYS", "carol:carols-long-key, dan:dans-long-key")
    keys = read_keys(["alice:alices-long:key"], file)
    assert [key.owner for key in keys] == ["alice", "carol", "dan", "bob"]
    assert keys[0].key == "alices-long:key" and "alices" not in repr(keys)
    monkeypatch.delenv("LONGMEM_API_KEYS")
    for wrong, told in (
        (["no-colon-here"], "NAME:KEY"),
        (["a b:long-enough-key"], "owner 'a b'"),
        (["a:short"], "at least 8"),
        (["a:long-enough-key", "b:long-enough-key"], "same API key"),
    ):
        with pytest.raises(ConfigError, match=told) as refused:
            read_keys(wrong, None)
        assert "long-enough-key" not in str(refused.value)
    with pytest.raises(InputError, match="--api-keys"):
        read_keys([], tmp_path / "missing")


def test_keys_are_compared_in_full_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys([ApiKey(f"o{i}", f"key-number-{i:04}") for i in range(9)])
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr("hmac.compare_digest", compare)
    for key, owner in (("key-number-0000", "o0"), ("key-number-0008", "o8"), ("k", None)):
        compared.clear()
        with suppress(ApiError):
            assert keys.owner(f"Bearer {key}") == owner
        assert len(compared) == 9  # also behind the one that fits
        assert {len(each) for pair in compared for each in pair} == {32}  # a short key is none
