"""A server without keys, and the browser on the same machine: pages of other sites change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from server_process import shared

SITE = "https://evil.example"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared("echo").url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def victim(http: httpx.Client) -> str:
    """A session that somebody would like to see gone."""
    begin(http, "victim")
    return "victim"


def begin(http: httpx.Client, session: str) -> None:
    body = {"model": "nano", "messages": [{"role": "user", "content": "Hi"}]}
    sent = http.post("/v1/chat/completions", json=body, headers={"x-session-id": session})
    assert sent.status_code == 200


def turns(http: httpx.Client, session: str) -> int:
    return int(http.get(f"/v1/longmem/sessions/{session}").json()["turns"])


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": SITE},
        {"origin": "null"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "http://localhost@evil.example"},
        {"origin": "http://[::1"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://localhost", "sec-fetch-site": "cross-site"},
    ],
    ids=str,
)
def test_a_page_of_another_site_changes_nothing(
    http: httpx.Client, victim: str, headers: dict[str, str]
) -> None:
    url, sent = "/v1/longmem/sessions", {"content-type": "text/plain", **headers}
    before, known = turns(http, victim), len(http.get(url, params={"limit": 100}).json()["data"])
    tried = [
        ("POST", f"{url}/{victim}/erase"),
        ("POST", f"{url}/{victim}/fork"),
        ("DELETE", f"{url}/{victim}"),
        ("POST", "/v1/conversations"),
        ("POST", "/v1/chat/completions"),
        ("GET", f"{url}/{victim}/turns"),
        ("OPTIONS", f"{url}/{victim}"),
    ]
    for content in (b"", b"{}"):
        for method, address in tried:
            refused = http.request(method, address, headers=sent, content=content)
            assert refused.status_code == 403, (method, address)
            assert refused.json()["error"]["code"] == "origin_refused"
            assert "access-control-allow-origin" not in refused.headers
    assert turns(http, victim) == before
    assert len(http.get(url, params={"limit": 100}).json()["data"]) == known


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8000", "https://LOCALHOST"],
)
def test_a_page_of_this_machine_is_let_in(http: httpx.Client, origin: str) -> None:
    headers = {"origin": origin, "sec-fetch-site": "same-site"}
    assert http.get("/v1/models", headers=headers).status_code == 200


def test_a_route_without_a_body_takes_none_that_is_no_json(http: httpx.Client) -> None:
    begin(http, "bodies")
    url = "/v1/longmem/sessions/bodies/erase"
    for headers in ({"content-type": "text/plain"}, {}):
        refused = http.post(url, content=b"{}", headers=headers)
        assert refused.status_code == 415
        assert refused.json()["error"]["code"] == "unsupported_media_type"
    assert turns(http, "bodies") > 0
    assert http.post(url).status_code == 200
