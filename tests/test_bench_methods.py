"""The memories a benchmark compares: presets in one budget, changes, grids."""

from __future__ import annotations

import pytest

from longmem import ConfigError, MemoryConfig, presets
from longmem.bench.methods import in_budget, methods, parse_changes, parse_vary
from longmem.nano import memory as nano_memory

GATES = ["infini:compressive.gates=gates.safetensors"]
BASE = MemoryConfig(n_init=8, n_local=96, block_size=64, topk=4, lookup_span=128)


@pytest.mark.parametrize(
    "base", [BASE, nano_memory(), MemoryConfig()], ids=["small", "nano", "own"]
)
@pytest.mark.parametrize("name", presets.NAMES)
def test_every_preset_attends_to_as_much_as_the_base(name: str, base: MemoryConfig) -> None:
    config = in_budget(base, name)
    assert (config.n_local, config.block_size) == (base.n_local, base.block_size)
    assert config.n_init in (base.n_init, 0)
    assert config.topk + config.contiguity in (base.topk, 0) or config.lookup == "all"
    assert (config.topk_tokens or 0) <= base.topk * base.block_size


def test_a_preset_keeps_what_makes_its_method() -> None:
    infllm, em_llm = in_budget(BASE, "infllm"), in_budget(BASE, "em-llm")
    assert (infllm.scorer, infllm.repr_topk, infllm.stride) == ("representative", 4, 1)
    assert (em_llm.topk, em_llm.contiguity, em_llm.refine) == (3, 1, "modularity")
    assert in_budget(BASE, "infini").compressive is not None


def test_the_preset_longmem_is_the_models_own_settings() -> None:
    assert in_budget(nano_memory(), "longmem") == nano_memory()


def test_settings_change_in_all_presets_or_in_one() -> None:
    changes = parse_changes(
        ["repr_topk=2", "infllm:scorer=soft_vote", *GATES, "infini:compressive.decay=0.5"]
    )
    longmem, infllm, infini = methods(BASE, ["longmem", "infllm", "infini"], changes)
    assert {m.config.repr_topk for m in (longmem, infllm, infini)} == {2}
    assert infllm.config.scorer == "soft_vote"
    assert longmem.config.compressive is None
    assert infini.config.compressive is not None and infini.config.compressive.decay == 0.5
    assert infini.config.compressive.rule == "delta_literal"


def test_varied_settings_make_a_grid() -> None:
    vary = parse_vary(["scorer=soft_vote,representative", "lookup_layers=[1],[1,2]"])
    grid = methods(BASE, ["longmem"], vary=vary)
    assert [m.name for m in grid][:2] == [
        "longmem scorer=soft_vote lookup_layers=[1]",
        "longmem scorer=soft_vote lookup_layers=[1, 2]",
    ]
    assert {(m.config.scorer, m.config.lookup_layers) for m in grid} == {
        (scorer, layers) for scorer in ("soft_vote", "representative") for layers in ((1,), (1, 2))
    }


@pytest.mark.parametrize(
    ("names", "changes", "vary", "message"),
    [
        (["colour"], [], [], "no preset is called 'colour'; choose one of longmem"),
        ([], [], [], "nothing to compare"),
        (["longmem"], ["topk"], [], "write it as NAME=VALUE"),
        (["longmem"], ["full:topk=1"], [], "'full' is not among the presets compared"),
        (["longmem"], ["colour=red"], [], "preset longmem: MemoryConfig has no setting 'colour'"),
        (["longmem"], [], ["block_size=0,8"], "preset longmem block_size=0: "),
        (["infini"], [], [], "preset infini: its gates are closed without a gate file"),
        (
            ["longmem", "infini"],
            [*GATES, "compressive.rule=linear"],
            [],
            "preset longmem: its compressive is None and holds no rule; name the preset",
        ),
        (
            ["longmem"],
            [],
            ["compressive.rule=linear,delta"],
            "preset longmem compressive.rule=linear: its compressive is None and holds no rule",
        ),
        (["longmem"], ["topk.far=3"], [], "preset longmem: its topk is 4 and holds no far"),
    ],
)
def test_what_cannot_be_compared_is_one_message(
    names: list[str], changes: list[str], vary: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match="^.{0,40}" + message.replace("[", r"\[")):
        methods(BASE, names, parse_changes(changes), parse_vary(vary))


def test_the_window_of_a_compressive_preset_can_be_compared_by_itself() -> None:
    (window,) = methods(BASE, ["infini"], parse_changes(["infini:compressive=null"]))
    assert window.config.compressive is None and window.config.window == "segment"
