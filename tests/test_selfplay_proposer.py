"""Proposer: only legal programs, exact log-probabilities, one set of weights for every grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from gg_ray.config import ProposerConfig, ScenarioConfig
from gg_ray.grid.cases import load_case
from gg_ray.records import Event, Program
from gg_ray.scenario.grammar import PRIMITIVE_NAMES, Grammar, Stratum
from gg_ray.selfplay.legal import HEADS, STOP, CaseEncoding, decode, encode, encode_case
from gg_ray.selfplay.proposer import Draft, Proposer


@dataclass
class World:
    """One call's arguments on one grid."""

    grammar: Grammar
    encoding: CaseEncoding
    strata: list[Stratum]
    plan_ids: list[int]
    context: torch.Tensor
    skill: torch.Tensor
    exemplars: list[tuple[Event, ...]]

    @property
    def call(self) -> tuple[object, ...]:
        return self.encoding, self.grammar, self.strata, self.plan_ids, self.context, self.skill, self.exemplars

    def log_prob(
        self, proposer: Proposer, drafts: list[Draft]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        tokens = torch.from_numpy(np.stack([draft.tokens for draft in drafts]))
        count = len(drafts)
        return proposer.log_prob(
            self.encoding, self.grammar, tokens, self.strata, self.plan_ids, self.context, self.skill,
            [self.exemplars] * count,
        )  # fmt: skip


def world(name: str, count: int = 36, exemplars: int = 0, **settings: object) -> World:
    case = load_case(name)
    grammar = Grammar(case, ScenarioConfig(**settings))  # type: ignore[arg-type]
    families = [f for f in grammar.families if grammar.primitives("anomalous", f)]
    kinds = [Stratum("ordinary", "", name), Stratum("hard", "", name), Stratum("anomalous", "", name)]
    kinds += [Stratum("anomalous", family, name) for family in families]
    rng = np.random.default_rng(7)
    shown = [grammar.uniform(kinds[i % len(kinds)], 0, rng) for i in range(exemplars)]
    generator = torch.Generator().manual_seed(3)
    return World(
        grammar, encode_case(case), [kinds[i % len(kinds)] for i in range(count)], [i % 8 for i in range(count)],
        torch.rand(count, 2, generator=generator), torch.rand(12, generator=generator), shown,
    )  # fmt: skip


def policy(seed: int = 0, sharp: float = 0.0, **settings: object) -> Proposer:
    """A Proposer; sharp scales its heads up so that it is far from uniform, as after training."""
    torch.manual_seed(seed)
    proposer = Proposer(ProposerConfig(**settings))  # type: ignore[arg-type]
    if sharp:
        with torch.no_grad():
            for head in proposer.heads:
                head.weight.normal_(std=sharp)
    return proposer


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["case14", "case30", "case118"])
@pytest.mark.parametrize("sharp", [0.0, 0.5])
def test_every_program_is_legal_and_follows_its_stratum(name: str, sharp: float) -> None:
    scene, proposer = world(name, count=84, exemplars=6), policy(sharp=sharp)
    for seed in range(3):
        for draft, stratum, plan_id in zip(
            proposer.sample(*scene.call, rng(seed)), scene.strata, scene.plan_ids, strict=True
        ):
            scene.grammar.validate(
                Program(case=name, context_id=0, plan_id=plan_id, events=draft.events, scans=16, seed=0)
            )
            names = [event.primitive for event in draft.events]
            if stratum.side != "ordinary":
                assert names[0] in scene.grammar.primitives(stratum.side, stratum.family)
                names = names[1:]
            assert set(names) <= set(scene.grammar.benign_followers(stratum.side))
            assert decode(draft.tokens) == draft.events


@pytest.mark.parametrize("name", ["case14", "case30", "case118"])
@pytest.mark.parametrize("mix", [0.1, 0.0])
def test_log_prob_repeats_what_was_recorded(name: str, mix: float) -> None:
    scene, proposer = world(name, exemplars=4), policy(sharp=0.4, uniform_mix=mix)
    drafts = proposer.sample(*scene.call, rng(1))
    logp, entropy, shares = scene.log_prob(proposer, drafts)
    recorded = torch.tensor([draft.logp for draft in drafts], dtype=torch.float64)
    torch.testing.assert_close(logp.detach(), recorded, rtol=0, atol=1e-5)
    assert set(shares) <= set(HEADS)
    assert all(0 < float(share.detach()) <= 1 for share in shares.values())
    assert bool((entropy > 0).all())


def test_probabilities_of_all_programs_of_one_event_add_up() -> None:
    """Exhaustive: every legal choice of the first event, summed, is 1 less what STOP takes."""
    scene, proposer = world("case14", count=1, max_events=1), policy(sharp=0.4)
    scene.strata = [Stratum("hard", "", "case14")]
    grammar, plan = scene.grammar, scene.grammar.plan(0)
    rows = []
    for name in ("gen_trip", "line_switch"):
        masks = (grammar.target_mask(name, plan), grammar.onset_mask(name), grammar.magnitude_mask(name),
                 grammar.duration_mask(name), grammar.support_mask(name))  # fmt: skip
        grids = np.meshgrid(*(np.flatnonzero(mask) for mask in masks), indexing="ij")
        values = np.stack([grid.ravel() for grid in grids], axis=1)
        word = np.full((len(values), 1), PRIMITIVE_NAMES.index(name))
        rows.append(np.concatenate([word, values], axis=1))
    tokens = torch.from_numpy(np.concatenate(rows))[:, None]
    count = tokens.shape[0]
    with torch.no_grad():
        logp, _, _ = proposer.log_prob(
            scene.encoding, grammar, tokens, scene.strata * count, [0] * count, scene.context.expand(count, -1),
            scene.skill, [()] * count,
        )  # fmt: skip
    total = {
        name: float(logp[tokens[:, 0, 0] == PRIMITIVE_NAMES.index(name)].exp().sum())
        for name in ("gen_trip", "line_switch")
    }
    drafts = proposer.sample(
        scene.encoding,
        grammar,
        scene.strata * 4000,
        [0] * 4000,
        scene.context.expand(4000, -1),
        scene.skill,
        [],
        rng(2),
    )
    for name, share in total.items():
        seen = np.mean([draft.events[0].primitive == name for draft in drafts])
        assert share == pytest.approx(seen, abs=4 * np.sqrt(share * (1 - share) / 4000))


def test_the_mixture_keeps_every_legal_choice_alive() -> None:
    scene, proposer = world("case14", count=400, max_events=1), policy(uniform_mix=0.1)
    scene.strata = [Stratum("anomalous", "S2", "case14")] * 400
    with torch.no_grad():
        proposer.heads[HEADS.index("magnitude")].bias[15] = 100.0
    drafts = proposer.sample(*scene.call, rng(0))
    bins = np.array([draft.events[0].magnitude for draft in drafts])
    legal = int(scene.grammar.magnitude_mask("bias").sum())
    assert (bins == 15).mean() == pytest.approx(0.9 + 0.1 / legal, abs=0.04)
    assert all(draft.entropy["magnitude"] < 0.01 for draft in drafts)


def test_untrained_programs_resemble_the_uniform_grammar() -> None:
    scene, proposer = world("case30", count=600), policy()
    drafts = proposer.sample(*scene.call, rng(0))
    lengths = [len(draft.events) for draft in drafts]
    assert 1.3 < np.mean(lengths) < 2.7
    used = {event.primitive for draft in drafts for event in draft.events}
    assert used >= set(scene.grammar.benign_followers("hard"))
    assert np.mean([draft.entropy["onset"] for draft in drafts if "onset" in draft.entropy]) > 0.99


def test_same_seed_same_programs() -> None:
    scene = world("case30", exemplars=3)
    first, again, other = (policy().sample(*scene.call, rng(seed)) for seed in (5, 5, 6))
    assert [d.events for d in first] == [d.events for d in again]
    assert [d.logp for d in first] == [d.logp for d in again]
    assert [d.events for d in first] != [d.events for d in other]


def test_conditions_reach_the_policy() -> None:
    scene, proposer = world("case30", exemplars=6), policy(sharp=0.3)
    drafts = proposer.sample(*scene.call, rng(0))
    base = scene.log_prob(proposer, drafts)[0].detach()
    changes = {
        "skill": {"skill": 1 - scene.skill},
        "context": {"context": 1 - scene.context},
        "exemplars": {"exemplars": []},
    }
    for name, change in changes.items():
        other = World(**{**scene.__dict__, **change})  # type: ignore[arg-type]
        assert not torch.allclose(other.log_prob(proposer, drafts)[0].detach(), base, atol=1e-4), name
    renamed = [Stratum(s.side, s.family, s.case, "induction") for s in scene.strata]
    moved = World(**{**scene.__dict__, "strata": renamed})
    assert not torch.allclose(moved.log_prob(proposer, drafts)[0].detach(), base, atol=1e-4)


def test_metering_plan_reaches_the_pointer() -> None:
    """With a weight on "has a meter" alone, targets of an attack anywhere in the grid move to metered places."""
    scene, proposer = world("case30", count=300, max_events=1), policy(uniform_mix=0.0)
    scene.strata, scene.plan_ids = [Stratum("anomalous", "A2", "case30")] * 300, [0] * 300
    metered = scene.grammar.target_mask("bias", scene.grammar.plan(0))

    def share() -> float:
        return float(np.mean([metered[d.events[0].target] for d in proposer.sample(*scene.call, rng(0))]))

    before = share()
    with torch.no_grad():
        proposer.heads[1].bias[-2] = 5.0
    assert before < 0.9 < share()


def test_every_weight_gets_a_gradient() -> None:
    scene, proposer = world("case30", exemplars=6), policy()
    drafts = proposer.sample(*scene.call, rng(0))
    logp, entropy, _ = scene.log_prob(proposer, drafts)
    (logp.mean() + entropy.mean()).backward()
    missing = [name for name, p in proposer.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert missing == []
    assert sum(p.numel() for p in proposer.parameters()) < 2_000_000


def test_wrong_arguments_are_named() -> None:
    scene, proposer = world("case14", count=2), policy()
    with pytest.raises(ValueError, match="case30"):
        proposer.sample(scene.encoding, world("case30").grammar, *scene.call[2:], rng())  # type: ignore[arg-type]
    foreign = World(**{**scene.__dict__, "strata": [Stratum("hard", "", "case30")] * 2})
    with pytest.raises(ValueError, match="hard/-/case30"):
        proposer.sample(*foreign.call, rng())
    short = World(**{**scene.__dict__, "plan_ids": [0]})
    with pytest.raises(ValueError, match="1 plans"):
        proposer.sample(*short.call, rng())
    outside = World(**{**scene.__dict__, "exemplars": [(Event("bias", 999, 3),)]})
    with pytest.raises(ValueError, match="999"):
        proposer.sample(*outside.call, rng())
    drafts = proposer.sample(*scene.call, rng())
    illegal = [Draft(events=(), tokens=np.array([[STOP, *[-1] * 5], *[[-1] * 6] * 2]), logp=0.0, entropy={})] * 2
    assert scene.strata[1].side == "hard"
    with pytest.raises(ValueError, match="primitive tokens"):
        scene.log_prob(proposer, illegal)
    assert len(drafts) == 2
    assert proposer.sample(scene.encoding, scene.grammar, [], [], scene.context[:0], scene.skill, [], rng()) == []


def test_tokens_of_an_event_round_trip() -> None:
    event = Event("scale", 5, 6, 7, 1, 2)
    assert decode(np.array([encode(event), [STOP, *[-1] * 5], encode(event)]))[0] == event
    assert decode(np.array([[STOP, *[-1] * 5]])) == ()
