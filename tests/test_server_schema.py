"""schemathesis: whatever the API's description allows or forbids, no request makes the server fail."""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from server_process import Server, shared

EXAMPLES = int(os.environ.get("LONGMEM_SCHEMA_EXAMPLES", "6"))
"""Requests per route and mode; set it higher for a longer look."""
LEAST_ROUTES = 12
KEPT = {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream", "store", "metadata"}
"""Fields of a request for a reply that stay as they came in a search that leads inside."""


@pytest.fixture(scope="module")
def echo() -> Server:
    return shared("echo")


@pytest.fixture(scope="module")
def known(echo: Server) -> dict[str, str]:
    """Ids that lead somewhere, by the names of path parameters."""
    client = echo.openai()
    ask = {"model": "nano", "messages": [{"role": "user", "content": "Hi"}]}
    client.chat.completions.create(**ask, extra_headers={"x-session-id": "fuzzed"})
    item = {"type": "message", "role": "user", "content": "Hi"}
    conversation = client.conversations.create(items=[item]).id
    (first,) = client.conversations.items.list(conversation).data
    return {
        "session_id": "fuzzed",
        "conversation_id": conversation,
        "item_id": first.id,
        "response_id": client.responses.create(model="nano", input="Hi").id,
        "id": "nano",
    }


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_makes_the_server_fail(
    echo: Server, known: dict[str, str], mode: GenerationMode
) -> None:
    api = schemathesis.openapi.from_url(f"{echo.url}/openapi.json")
    operations = [found.ok() for found in api.get_all_operations()]
    if mode is GenerationMode.NEGATIVE:  # of a name in a path nothing can be wrong
        operations = [each for each in operations if each.body or each.query]
    statuses = {each.label: explore(each, mode, known) for each in operations}
    assert len(statuses) >= LEAST_ROUTES and all(statuses.values())
    if mode is GenerationMode.POSITIVE:  # the search came past the first refusals
        reached = [label for label, found in statuses.items() if min(found) < 300]
        assert "POST /v1/chat/completions" in reached and len(reached) > len(statuses) / 2


def explore(operation: Any, mode: GenerationMode, known: dict[str, str]) -> list[int]:
    """Send what the description of one route brings forth; gives the statuses that came back."""
    found: list[int] = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), deep=st.booleans())
    def send(case: Any, deep: bool) -> None:
        if deep:
            lead_inside(case, known)
        response = case.call(timeout=60)
        found.append(response.status_code)
        assert response.status_code < 500, (case.as_curl_command(), response.text)
        if response.status_code >= 400:
            error = response.json()["error"]
            assert isinstance(error["code"], str) and isinstance(error["message"], str)

    send()
    return found


def lead_inside(case: Any, known: dict[str, str]) -> None:
    """Put right what would be refused first, and leave the rest as it came."""
    for name in set(known) & set(case.path_parameters or {}):
        case.path_parameters[name] = known[name]
    if isinstance(case.body, dict) and "model" in case.body:
        kept = {k: v for k, v in case.body.items() if k in KEPT}
        inside = {"messages": [{"role": "user", "content": "Hi"}], "input": "Hi", "model": "nano"}
        case.body = kept | {k: v for k, v in inside.items() if k in case.body}
        case.headers = {}
