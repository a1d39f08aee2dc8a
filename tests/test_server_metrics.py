"""/metrics: vLLM's names, longmem's own figures, and numbers that are right."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_process import Server, shared

VLLM = {
    "num_requests_running",
    "num_requests_waiting",
    "prompt_tokens",
    "generation_tokens",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "request_success",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
}
OWN = {
    "sessions_resident",
    "sessions_opened",
    "sessions_parked",
    "sessions_stored",
    "session_restore_seconds",
    "session_restore_bytes",
    "session_bytes",
    "lookups",
    "lookups_saved",
    "block_hits",
    "block_misses",
    "block_hit_rate",
    "commit_seconds",
    "store_bytes",
    "engine_tokens_read",
    "engine_passes",
}


@pytest.fixture(scope="module")
def nano() -> Server:
    return shared()


def figures(server: Server) -> dict[str, float]:
    """Every sample, labels behind its name."""
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(f",{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_every_figure_is_there_under_its_name(nano: Server) -> None:
    text = httpx.get(f"{nano.url}/metrics").text
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {f"longmem_{name}" for name in VLLM | OWN} <= names


def test_one_exchange_moves_the_figures_by_what_it_was(nano: Server) -> None:
    client, before = nano.openai(), figures(nano)
    for text in ("My locker code is 482913.", "What is my locker code?"):
        done = client.chat.completions.create(
            model="nano",
            messages=[{"role": "user", "content": text}],
            extra_headers={"x-session-id": "measured"},
        )
    after = figures(nano)

    def moved(name: str) -> float:
        return after[f"longmem_{name}"] - before.get(f"longmem_{name}", 0.0)

    assert moved("request_success_total,stop") == 2
    assert moved("prefix_cache_hits_total") == done.usage.prompt_tokens_details.cached_tokens
    assert moved("prompt_tokens_total") > done.usage.prompt_tokens
    assert moved("generation_tokens_total") > done.usage.completion_tokens
    assert moved("time_to_first_token_seconds_count") == 2
    assert moved("commit_seconds_count") == 2 and moved("commit_seconds_sum") > 0
    assert moved("engine_tokens_read_total") > 0
    assert moved("sessions_opened_total") == 1 and moved("sessions_resident") == 1
    assert after["longmem_num_requests_running"] == after["longmem_num_requests_waiting"] == 0
    with pytest.raises(Exception, match="messages"):
        client.chat.completions.create(model="nano", messages=[])
    assert (
        figures(nano)["longmem_request_success_total,stop"]
        == after["longmem_request_success_total,stop"]
    )
