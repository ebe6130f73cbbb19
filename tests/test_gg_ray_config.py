"""gg_ray.config_io: files and overrides to settings and back; the messages are part of the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.checkpoint import config_diff, config_hash
from gg_ray.config import ConfigError, RunConfig, as_dict, did_you_mean
from gg_ray.config_io import (
    dump,
    from_dict,
    known_names,
    load,
    parse,
    setting_paths,
)

FLOATS = st.floats(allow_nan=False, width=64)


@st.composite
def run_configs(draw: st.DrawFn) -> RunConfig:
    """Settings with values that YAML is known to mangle: exponents, infinities, words such as `off` and `1e3`."""
    words = st.one_of(
        st.sampled_from(
            ["off", "no", "1e3", "1_0e5", "010", "1:30", "null", "~", "", "2026-01-01", ".inf", "=", "- a", "#"]
        ),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    )
    return from_dict(
        {
            "name": draw(words),
            "seed": draw(st.integers(-(2**70), 2**70)),
            "scenario": {
                "data_dir": draw(words),
                "gates": draw(st.sampled_from(["on", "off"])),
                "cases": draw(st.lists(st.sampled_from(["case14", "case30", "gb"]), min_size=1, max_size=3)),
                "d_max": draw(st.floats(min_value=3.5)),
            },
            "learner": {"lr": draw(FLOATS), "loss": {"twin": draw(FLOATS)}},
            "evaluate": {"baselines": draw(st.booleans())},
        }
    )


@given(run_configs())
@settings(deadline=None, max_examples=80)
def test_dump_and_parse_are_inverse(config: RunConfig) -> None:
    again = from_dict(parse(dump(config)))
    assert again == config
    assert config_hash(as_dict(again)) == config_hash(as_dict(config))


@given(run_configs(), run_configs())
@settings(deadline=None, max_examples=40)
def test_hash_and_diff_agree_on_equality(a: RunConfig, b: RunConfig) -> None:
    same = config_hash(as_dict(a)) == config_hash(as_dict(b))
    assert same == (config_diff(as_dict(a), as_dict(b)) == [])


@pytest.mark.parametrize("name", known_names())
def test_packaged_configs_load_and_carry_their_name(name: str) -> None:
    assert load(name).name == name


def test_laptop_is_the_defaults() -> None:
    assert load("laptop") == load() == RunConfig()


def test_smoke_is_small_and_reproducible() -> None:
    smoke = load("smoke")
    assert smoke.mode == "serial"
    assert smoke.selfplay.steps <= 30
    assert not smoke.evaluate.uniform_control


def test_overrides_win_over_the_file_and_leave_the_rest() -> None:
    config = load("smoke", {"learner": {"lr": 1e-3}, "learner.loss.twin": 2, "scenario.kappa": [0.2, 0.3]})
    assert (config.learner.lr, config.learner.loss.twin, config.scenario.kappa) == (1e-3, 2.0, (0.2, 0.3))
    changed = config_diff(as_dict(load("smoke")), as_dict(config))
    assert [line.partition(":")[0] for line in changed] == ["learner.loss.twin", "learner.lr", "scenario.kappa"]


def test_overrides_are_not_changed_by_loading() -> None:
    overrides = {"learner": {"loss": {"twin": 1.0}}}
    load("smoke", overrides)
    assert overrides == {"learner": {"loss": {"twin": 1.0}}}


def test_whole_numbers_become_floats() -> None:
    assert load(None, {"scenario.step_s": 60}) == RunConfig()
    assert isinstance(load(None, {"scenario.step_s": 60}).scenario.step_s, float)


def test_yaml_words_and_exponents_mean_what_they_say(tmp_path: Path) -> None:
    """YAML 1.1 reads `off` as False and `1e-3` as a string; a settings file may hold both."""
    file = tmp_path / "mine.yaml"
    file.write_text("scenario: {gates: off, d_max: .inf}\nlearner: {lr: 1e-3}\nreplay: {max_items: 50_000}\n")
    config = load(str(file))
    assert (config.scenario.gates, config.learner.lr, config.replay.max_items) == ("off", 1e-3, 50_000)
    assert config.scenario.d_max == float("inf")
    assert config.name == "mine", "a file without a name must not write into runs/laptop"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"scenario": {"gatez": "off"}}, ["scenario.gatez", "did you mean scenario.gates?"]),
        ({"learner": {"loss": {"twn": 1.0}}}, ["learner.loss.twn", "did you mean learner.loss.twin?"]),
        ({"learner": {"reward": "azr"}}, ["learner.reward", "did you mean selfplay.reward?"]),
        ({"learner": {"lr": "fast"}}, ["learner.lr", "'fast'", "float"]),
        ({"seed": True}, ["seed", "True", "int"]),
        ({"seed": 1.5}, ["seed", "1.5", "int"]),
        ({"evaluate": {"baselines": 1}}, ["evaluate.baselines", "1", "bool"]),
        ({"name": 3}, ["name", "3", "str"]),
        ({"learner": {"lr": float("nan")}}, ["learner.lr", "nan", "number"]),
        ({"scenario": {"gates": "no"}}, ["scenario.gates", "'no'", "on, off"]),
        ({"scenario": {"kappa": [0.5]}}, ["scenario.kappa", "[0.5]", "tuple[float, float]"]),
        ({"scenario": {"kappa": [0.5, "x"]}}, ["scenario.kappa[1]", "'x'", "float"]),
        ({"scenario": {"cases": "case14"}}, ["scenario.cases", "'case14'", "[a, b]"]),
        ({"scenario": {"cases": ["case39"]}}, ["scenario.cases", "case39", "case14"]),
        ({"scenario": 3}, ["scenario", "3", "section"]),
        ({"name": {"a": 1}}, ["name", "str"]),
        ({"scenario": {"scans": 17}}, ["scenario.scans", "17", "(16, 24, 48)"]),
    ],
)
def test_refusals_name_the_setting_its_value_and_the_way_out(overrides: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, overrides)
    assert [part for part in parts if part not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: 1\nseed: 2\n", ["seed", "twice", "line 2"]),
        ("seed: [1\n", ["not valid YAML"]),
        ("- a\n", ["setting: value"]),
        ("[a, b]: 1\n", ["line 1", "word"]),
        ("seed: !!python/object/apply:os.getcwd []\n", ["not valid YAML"]),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(str(file))
    assert [part for part in ["broken.yaml", *parts] if part not in str(refused.value)] == []


def test_unknown_names_and_missing_files_say_what_exists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'smok'; did you mean smoke\?"):
        load("smok")
    with pytest.raises(ConfigError, match="gpu, laptop, smoke"):
        load("xyzzy")
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        load(str(tmp_path / "absent.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(str(tmp_path / "bytes.yaml"))


def test_an_empty_file_is_the_defaults_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert load(str(tmp_path / "empty.yaml")) == RunConfig(name="empty")


def test_setting_paths_are_unique_and_reach_the_leaves() -> None:
    paths = setting_paths()
    assert len(set(paths)) == len(paths)
    assert {"seed", "scenario.kappa", "learner.loss.twin"} <= set(paths)
    assert "learner.loss" not in paths


def test_did_you_mean_is_silent_without_a_close_name() -> None:
    assert did_you_mean("qqqqqq", ["train", "doctor"]) == ""
    assert did_you_mean("trainn", ["train", "doctor"]) == "; did you mean train?"
