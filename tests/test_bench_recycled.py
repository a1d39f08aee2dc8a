"""`longmem bench recycled`: a policy against looking up at every token."""

from __future__ import annotations

import json

import pytest
from command import Command

from longmem import Engine
from longmem.bench.recycled import RecycledRun, Side, Trial, every_step, measure
from longmem.bench.tasks import get_task


@pytest.fixture(scope="module")
def nano() -> Engine:
    return Engine.nano()


def test_the_reference_agrees_with_itself_at_every_step(nano: Engine) -> None:
    policy = every_step(nano.config)
    run = measure(nano, policy, get_task("passkey"), 400, replies=4)
    assert run.agreement.hits == run.agreement.total > 0
    for trial in run.trials:
        assert trial.policy.refreshes == trial.reference.refreshes == trial.policy.steps
        assert trial.policy.score == trial.reference.score


def test_a_policy_is_fed_the_references_reply_on_its_own_schedule(nano: Engine) -> None:
    policy = nano.config.replace(stride=4)
    run = measure(nano, policy, get_task("passkey"), 400, replies=2, reply_tokens=12)
    for trial in run.trials:
        assert (trial.reference.steps, trial.policy.steps) == (12, 12)
        assert (trial.reference.refreshes, trial.policy.refreshes) == (12, 3)
        layers = trial.reference.lookups // 12
        assert (trial.policy.lookups, trial.policy.lookups_saved) == (3 * layers, 9 * layers)
    assert 0 < run.agreement.value <= 1


def test_attending_to_one_token_between_look_ups_changes_what_is_likeliest(nano: Engine) -> None:
    policy = nano.config.replace(stride=8, topk_tokens=1, n_init=0)
    run = measure(nano, policy, get_task("conversation"), 800, replies=2, reply_tokens=24)
    assert run.agreement.value < 1


def test_the_figures_pair_the_answers() -> None:
    good, bad = Side(1.0, 9, 9, 27, 0, 0.8), Side(0.0, 9, 2, 6, 21, 0.4)
    run = RecycledRun([Trial(good, good, 8), Trial(good, bad, 4)])
    found = run.figures()
    assert found["top1_agreement"] == 0.75 and found["steps"] == 16  # the first of 9 does not count
    assert (found["refreshes_policy"], found["lookups_policy"]) == (11, 33)
    assert (found["lookups_reference"], found["lookups_saved_policy"]) == (54, 21)
    assert found["lookup_ratio"] == pytest.approx(54 / 33)
    assert (found["recall_reference"], found["recall_policy"]) == (1.0, 0.5)
    assert (found["both_right"], found["only_reference_right"]) == (1, 1)
    assert found["time_ratio"] == pytest.approx((0.8 + 0.4) / 1.6)


def test_the_command_prints_agreement_and_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longmem = Command(monkeypatch, capsys)
    done = longmem(
        "bench", "recycled", "--tokens", "400", "--replies", "2", "--set", "stride=4", "--json"
    )
    assert done.code == 0, done.err
    assert "top-1 agreement" in done.out
    assert "refresh steps" in done.out and "look-ups of layers" in done.out
    figures = json.loads(done.out.splitlines()[-1])
    assert figures["settings"]["reference"]["stride"] == 1 and figures["replies"] == 2
    large = longmem("bench", "recycled", "--tokens", "999_000_000_000".replace("_", ""))
    assert large.code == 1 and large.err.endswith("GB are free; take fewer --tokens\n")
    wrong = longmem("bench", "recycled", "--preset", "nonsense")
    assert wrong.code == 1 and "no preset is called 'nonsense'" in wrong.err
