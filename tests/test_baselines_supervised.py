"""Networks in the Verifier's place: what each may look at, that pupils learn from the game's own draws, tuning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gg_ray.baselines import tuning
from gg_ray.baselines.base import Detector
from gg_ray.baselines.catalogue import MAKERS, SUPERVISED
from gg_ray.baselines.tuning import SPACES, Labelled, macro_auroc, points, search
from gg_ray.bench.verifier import synthetic_batch
from gg_ray.config import ConfigError, RunConfig, VerifierConfig
from gg_ray.config_io import load
from gg_ray.evaluate.job import network_methods
from gg_ray.learner import Learner, new_verifier
from gg_ray.records import F64
from gg_ray.scenario.context import context_source
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.loop import play
from gg_ray.train import pupils_of
from gg_ray.verifier.features import Prepared


def architecture(name: str) -> VerifierConfig:
    return SUPERVISED[name].settings(RunConfig())[0]


@pytest.mark.parametrize("name", SUPERVISED)
def test_a_per_bus_network_judges_a_bus_by_its_own_meters_alone(name: str) -> None:
    """Another bus's readings change its own node logit and, without a graph, no other; GraphSAGE sees neighbours."""
    batch = synthetic_batch(40, 16, np.random.default_rng(0))
    network = new_verifier(architecture(name), 3).eval()
    with torch.inference_mode():
        before = network(batch)
        batch.x[7] += 1.0
        after = network(batch)
    moved = set(torch.nonzero((before.node - after.node).abs() > 1e-7)[:, 0].tolist())
    assert 7 in moved
    assert (moved == {7}) == (SUPERVISED[name].graph == "none")
    assert float(before.implausible) != float(after.implausible)


@pytest.mark.parametrize("scans", [16, 24, 48])
def test_the_convolutional_one_serves_every_window_length(scans: int) -> None:
    network = new_verifier(architecture("per_bus_cnn"), 0).eval()
    with torch.inference_mode():
        out = network(synthetic_batch(20, scans, np.random.default_rng(1)))
    assert torch.isfinite(out.node).all()


def test_a_convolution_looks_seven_scans_to_each_side_and_no_farther() -> None:
    encoder = new_verifier(architecture("per_bus_cnn"), 0).node_encoder
    x = torch.zeros(1, 20, 48)
    x[0, 0, 24] = 1.0
    with torch.no_grad():
        still, moved = torch.zeros_like(x), x
        for layer in encoder.layers:  # type: ignore[union-attr]
            still, moved = torch.relu(layer(still)), torch.relu(layer(moved))
    reached = torch.nonzero((moved - still).abs().sum(dim=(0, 1)))[:, 0]
    assert int(reached.min()) >= 24 - 7
    assert int(reached.max()) <= 24 + 7
    assert reached.numel() > 3


@pytest.fixture(scope="module")
def uniform() -> RunConfig:
    return load(
        "smoke",
        {"scenario.cases": ["case14"], "selfplay.steps": 8, "selfplay.arm": "uniform", "actors.solvers": 0,
         "evaluate.uniform_control": False, "verifier.hidden": 16},
    )  # fmt: skip


def test_a_pupil_like_the_game_s_own_network_ends_equal_to_it(uniform: RunConfig) -> None:
    """Same draws in the same order: bit for bit. The others learn as many steps and the game does not notice them."""

    def played(pupils: dict[str, Learner]) -> Game:
        game = Game(uniform)
        game.pupils = pupils
        play(uniform, context_source(None), game, Buffer(uniform), lambda _game, _buffer: None)
        return game

    twin = Learner(new_verifier(uniform.verifier, uniform.seed), uniform.learner, uniform.selfplay.steps)
    game = played({"twin": twin, **pupils_of(uniform)})
    for name, mean in game.learner.average.state_dict().items():
        assert torch.equal(mean, twin.average.state_dict()[name]), name
    assert {pupil.step_count for pupil in game.pupils.values()} == {game.step} == {8}
    alone = played({})
    for name, mean in alone.learner.average.state_dict().items():
        assert torch.equal(mean, game.learner.average.state_dict()[name]), name
    networks = {name: pupil.weights() for name, pupil in game.pupils.items()}
    others = {name: pupil.network.config for name, pupil in game.pupils.items()}
    rows = network_methods(networks, uniform.verifier, others)
    assert [row.name for row in rows] == ["twin", *SUPERVISED]


def test_supervised_rows_need_the_control() -> None:
    on = {"evaluate.supervised_baselines": True, "evaluate.uniform_control": False}
    with pytest.raises(ConfigError, match=r"supervised_baselines.*evaluate\.uniform_control"):
        load(None, on)
    with pytest.raises(ConfigError, match=r"baseline_groups: unknown 'depp'; did you mean deep\?"):
        load(None, {"evaluate.baseline_groups": ["depp"]})


# --- tuning -----------------------------------------------------------------------------------------------------------


def test_points_are_distinct_repeatable_and_whole_where_few() -> None:
    space = {"a": (1, 2, 3), "b": ("x", "y")}
    rng = np.random.default_rng
    assert len(points(space, 16, rng(0))) == 6
    drawn = points(space, 4, rng(0))
    assert drawn == points(space, 4, rng(0))
    assert len({tuple(point.values()) for point in drawn}) == 4
    assert all(point["a"] in space["a"] and point["b"] in space["b"] for point in drawn)


def test_every_setting_that_is_searched_exists() -> None:
    for name, space in SPACES.items():
        for point in points(space, 2, np.random.default_rng(0)):
            MAKERS[name](**point)
    for base in SUPERVISED.values():
        for point in points(tuning.SUPERVISED_SPACE, 100, np.random.default_rng(0)):
            replace(base, **point).settings(RunConfig())


def labelled(families: list[str]) -> Labelled:
    return Labelled(None, families)  # type: ignore[arg-type]


def test_macro_auroc_is_the_mean_over_plans_and_families() -> None:
    one, two = labelled(["", "", "S2", "S2", "T2"]), labelled(["", "A2"])
    scores = [np.array([0.0, 1.0, 2.0, 3.0, 0.5]), np.array([1.0, 0.0])]
    assert macro_auroc(scores, [one, two]) == pytest.approx((1.0 + 0.5 + 0.0) / 3)


def test_a_search_puts_the_best_first() -> None:
    class Sloped:
        """Separates the better the nearer its setting is to 4; what it is fitted on does not matter."""

        name = "sloped"

        def __init__(self, prior: float) -> None:
            self.prior = prior

        def fit(self, benign: object, rng: np.random.Generator) -> None:
            self.noise = rng.standard_normal(40)

        def score(self, prepared: Prepared) -> F64:
            truth = np.repeat([0.0, 1.0], 20)
            return np.asarray(truth + (0.2 + abs(self.prior - 4.0)) * self.noise)

        def node_scores(self, prepared: Prepared) -> None:
            return None

    def make(prior: float) -> Detector:
        return Sloped(prior)  # type: ignore[return-value]

    tried = search("seasonal_z", [], [labelled([""] * 20 + ["S2"] * 20)], 16, 0, make)
    assert len(tried) == len(SPACES["seasonal_z"]["prior"])
    assert tried[0].settings == {"prior": 4.0}
    assert [trial.auroc for trial in tried] == sorted((trial.auroc for trial in tried), reverse=True)
