"""The policy that writes programs: a GRU over grammar tokens whose masked heads can only say what is legal.

Flow:    scheduler (strata), archive (exemplars), legal (masks) -> [proposer] -> executor, policy_update
Source:  selfplay.md, section 10; pointer networks 1506.03134; action masking 2006.14171
Shapes:  P programs of one grid, N buses, E branches (places = N + E), J events of six slots, K primitives, H hidden

The target is a pointer over place embeddings, so one set of weights serves every grid. Tokens are int64 [J, 6] per
program in the order of legal.HEADS; -1 marks a choice that was never made. The network is small and stays on the CPU,
where the programs are executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from gg_ray.config import WINDOW_SCANS, ProposerConfig
from gg_ray.records import FAMILIES, I64, Event
from gg_ray.scenario.grammar import DURATION_SCANS, MAGNITUDE_BINS, SIDES, SUPPORT_BINS, Grammar, Stratum
from gg_ray.selfplay.legal import (
    F_BRANCH,
    F_BUS,
    F_PLAN,
    HEADS,
    KIND_OF,
    STOP,
    CaseEncoding,
    decode,
    encode,
    masks_of,
)
from gg_ray.verifier.gat import GatLayer

MODES = ("deduction", "abduction", "induction")
CONTEXT = 2
"""Load level relative to the corpus mean and wind capacity factor."""
PLACE_WIDTH = 64
PLACE_HEADS = 4
_CHOICES = (STOP + 1, 0, max(WINDOW_SCANS), MAGNITUDE_BINS, len(DURATION_SCANS), SUPPORT_BINS)
"""Outputs per head; the pointer has as many as the grid has places."""
STOP_BIAS = 1.4
"""Initial logit of STOP: against eight or more followers it gives about as many events as the uniform grammar."""
_TINY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A program body as the policy wrote it."""

    events: tuple[Event, ...]
    tokens: I64
    """[J, 6]"""
    logp: float
    """Log-probability of all its choices under the behaviour policy (uniform mixture included)."""
    entropy: dict[str, float]
    """Per head: mean entropy over the program's open choices as a share of the largest possible; absent without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """What is fixed while the programs of one call are written."""

    start_PH: Tensor
    places: Tensor
    """[N + E, PLACE_WIDTH]"""
    keys: Tensor
    plan_P: Tensor
    """[P] row of the next three: one per distinct plan U."""
    place_masks: Tensor
    """bool [U, kinds, N + E]"""
    plan_features: Tensor
    """[U, N + E, 2]"""
    openers_PK: Tensor
    followers_PK: Tensor
    """bool [P, K + 1]"""
    slots: tuple[Tensor, ...]
    max_events: int


class Proposer(nn.Module):
    """Writes programs that are legal by construction.

    Invariant: every sampled program passes Grammar.validate; log_prob of sampled tokens under unchanged weights and the
    same conditions is the recorded logp; no weight depends on the size of a grid.
    """

    def __init__(self, config: ProposerConfig) -> None:
        super().__init__()
        self.config = config
        hidden, width = config.hidden, PLACE_WIDTH
        self.bus_in = nn.Linear(F_BUS, width)
        self.branch_in = nn.Linear(F_BRANCH, width)
        self.graph = nn.ModuleList(GatLayer(width, width, PLACE_HEADS) for _ in range(2))
        self.branch_out = nn.Linear(2 * width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.tokens = nn.ModuleList(nn.Embedding(size, width) if size else nn.Linear(width, width) for size in _CHOICES)
        self.slot = nn.Parameter(0.1 * torch.randn(len(HEADS), width))
        self.begin = nn.Parameter(0.1 * torch.randn(width))
        self.side = nn.Embedding(len(SIDES), width)
        self.family = nn.Embedding(1 + len(FAMILIES), width)
        self.mode = nn.Embedding(len(MODES), width)
        self.start = nn.Linear(3 * width + len(FAMILIES) + CONTEXT, hidden)
        self.gru = nn.GRU(width, hidden, batch_first=True)
        heads = [nn.Linear(hidden, size or width + F_PLAN) for size in _CHOICES]
        # near-uniform from the start: the first programs should look like the grammar's own
        for head in heads:
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        nn.init.constant_(heads[0].bias[STOP : STOP + 1], STOP_BIAS)
        self.heads = nn.ModuleList(heads)

    @torch.no_grad()
    def sample(
        self,
        encoding: CaseEncoding,
        grammar: Grammar,
        strata: Sequence[Stratum],
        plan_ids: Sequence[int],
        context: Tensor,
        skill: Tensor,
        exemplars: Sequence[tuple[Event, ...]],
        generator: torch.Generator,
    ) -> list[Draft]:
        """Write one program per stratum.

        Args:    encoding   encode_case(grammar.case);  plan_ids [P] metering plan of each program
                 context    [P, 2] load and wind level;  skill [12] or [P, 12], scheduler.skill_vector
                 exemplars  events of programs on this grid, shared by the call; may be empty
        Returns: P drafts. An anomalous or hard draft opens with an event of its stratum, unless the metering plan
                 leaves no legal one.
        Raises:  ValueError if the arguments do not fit each other or the grid.
        """
        count = len(strata)
        if not count:
            return []
        scene = self._scene(encoding, grammar, strata, plan_ids, context, skill, [tuple(exemplars)] * count)
        tokens = torch.full((count, scene.max_events, len(HEADS)), -1)
        logp = torch.zeros(count, dtype=torch.float64)
        entropy, chosen = (torch.zeros(count, len(HEADS), dtype=torch.float64) for _ in range(2))
        state, alive = scene.start_PH[None], torch.ones(count, dtype=torch.bool)
        given = (self.begin + self.slot[0]).expand(count, -1)
        for event in range(scene.max_events):
            allowed = scene.openers_PK if event == 0 else scene.followers_PK
            primitive = torch.zeros(count, dtype=torch.int64)
            for head in range(len(HEADS)):
                out, state = self.gru(given[:, None], state)
                mask = self._mask(scene, head, primitive, alive, allowed, scene.plan_P)
                logits = self._logits(scene, head, out[:, 0], scene.plan_P)
                mixed, share, is_open = self._behaviour(logits, mask)
                choice = torch.multinomial(mixed, 1, generator=generator)[:, 0]
                logp += mixed.gather(1, choice[:, None])[:, 0].log()
                entropy[:, head] += share * is_open
                chosen[:, head] += is_open
                tokens[:, event, head] = torch.where(alive, choice, -1)
                if head == 0:
                    alive = alive & (choice != STOP)
                    primitive = choice.clamp(max=STOP - 1)
                given = self._embed(scene.places, head, choice) + self.slot[(head + 1) % len(HEADS)]
            if not alive.any():
                break
        table = tokens.numpy()
        shares = (entropy / chosen.clamp(min=1)).tolist()
        return [
            Draft(
                events=decode(table[i]),
                tokens=table[i].copy(),
                logp=float(logp[i]),
                entropy={name: shares[i][h] for h, name in enumerate(HEADS) if chosen[i, h] > 0},
            )
            for i in range(count)
        ]

    def log_prob(
        self,
        encoding: CaseEncoding,
        grammar: Grammar,
        tokens: Tensor,
        strata: Sequence[Stratum],
        plan_ids: Sequence[int],
        context: Tensor,
        skill: Tensor,
        exemplars: Sequence[Sequence[tuple[Event, ...]]],
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Log-probability of written programs under the current weights; differentiable.

        Args:    as sample, but tokens i64 [P, J, 6] and exemplars one set per program (they may come from many calls)
        Returns: logp f64 [P] under the behaviour mixture; entropy f64 [P], the sum over heads of the policy's mean
                 entropy in nats; per head the mean entropy of open choices as a share of the largest (scalar; a head
                 without an open choice is left out).
        Raises:  ValueError for tokens that the grammar forbids under these conditions: the conditions are not those
                 under which the programs were written.
        """
        scene = self._scene(encoding, grammar, strata, plan_ids, context, skill, exemplars)
        count, events, heads = tokens.shape
        made = tokens.clamp(min=0)
        embedded = torch.stack([self._embed(scene.places, h, made[:, :, h].flatten()) for h in range(heads)], dim=1)
        embedded = embedded.view(count, events, heads, -1) + self.slot.roll(-1, dims=0)
        first = (self.begin + self.slot[0]).expand(count, 1, -1)
        given = torch.cat([first, embedded.flatten(1, 2)[:, :-1]], dim=1)
        out = self.gru(given, scene.start_PH[None])[0].reshape(count * events, heads, -1)
        plan = scene.plan_P.repeat_interleave(events)
        followers = scene.followers_PK[:, None].expand(-1, events - 1, -1)
        allowed = torch.cat([scene.openers_PK[:, None], followers], dim=1).flatten(0, 1)
        asked = (tokens >= 0).flatten(0, 1)
        primitive = made[:, :, 0].flatten().clamp(max=STOP - 1)
        logp = torch.zeros(count * events, dtype=torch.float64)
        entropy = torch.zeros(count, dtype=torch.float64)
        shares: dict[str, Tensor] = {}
        for head in range(heads):
            mask = self._mask(scene, head, primitive, asked[:, head], allowed, plan)
            choice = made[:, :, head].flatten()
            if not bool(mask.gather(1, choice[:, None]).all()):
                raise ValueError(
                    f"log_prob: {HEADS[head]} tokens that the grammar of {encoding.case} forbids; "
                    "pass the strata, plans and grammar under which the programs were written"
                )
            mixed, share, is_open = self._behaviour(self._logits(scene, head, out[:, head], plan), mask)
            logp = logp + mixed.gather(1, choice[:, None])[:, 0].log()
            nats = (share * mask.sum(dim=1).clamp(min=2).log() * is_open).view(count, events)
            number = is_open.view(count, events).sum(dim=1)
            entropy = entropy + nats.sum(dim=1) / number.clamp(min=1)
            if bool(is_open.any()):
                shares[HEADS[head]] = share[is_open].mean()
        return logp.view(count, events).sum(dim=1), entropy, shares

    def _behaviour(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Behaviour probabilities f64, entropy of the policy as a share of its maximum, and whether there is a choice.

        Float64: a program has up to 18 choices, and the importance ratio is the exponential of their summed difference.
        """
        masked = logits.double().masked_fill(~mask, -torch.inf)
        policy = torch.softmax(masked, dim=1)
        legal = mask.sum(dim=1)
        even = mask.double() / legal[:, None]
        mix = self.config.uniform_mix
        mixed = (1.0 - mix) * policy + mix * even
        nats = -(policy * policy.clamp(min=_TINY).log()).sum(dim=1)
        return mixed, nats / legal.clamp(min=2).log(), legal > 1

    def _mask(
        self, scene: _Scene, head: int, primitive: Tensor, asked: Tensor, allowed: Tensor, plan: Tensor
    ) -> Tensor:
        """Legal choices of a head; a row that is not asked has the single choice 0: certain, so it adds nothing."""
        if head == 0:
            mask = allowed
        elif head == 1:
            mask = scene.place_masks[plan, KIND_OF[primitive]]
        else:
            mask = scene.slots[head - 2][primitive]
            mask = fn.pad(mask, (0, _CHOICES[head] - mask.shape[1]))
        only_first = torch.zeros(mask.shape[1], dtype=torch.bool)
        only_first[0] = True
        return torch.where(asked[:, None], mask, only_first)

    def _logits(self, scene: _Scene, head: int, out: Tensor, plan: Tensor) -> Tensor:
        query: Tensor = self.heads[head](out)
        if head != 1:
            return query
        pointer = query[:, :PLACE_WIDTH] @ scene.keys.T
        metered = torch.einsum("pf,puf->pu", query[:, PLACE_WIDTH:], scene.plan_features[plan])
        return pointer + metered

    def _embed(self, places: Tensor, head: int, choice: Tensor) -> Tensor:
        if head == 1:
            choice = places.index_select(0, choice)
        embedded: Tensor = self.tokens[head](choice)
        return embedded

    def _places(self, encoding: CaseEncoding) -> Tensor:
        """[N + E, PLACE_WIDTH] embeddings of buses, then branches."""
        h, edge = self.bus_in(encoding.bus), fn.gelu(self.branch_in(encoding.branch))
        alive = encoding.branch.new_ones(encoding.branch.shape[0])
        for layer in self.graph:
            h = layer(h, encoding.edge_index, edge, alive)
        ends = h[encoding.edge_index[0]] + h[encoding.edge_index[1]]
        return torch.cat([h, fn.gelu(self.branch_out(torch.cat([edge, ends], dim=1)))])

    def _scene(
        self,
        encoding: CaseEncoding,
        grammar: Grammar,
        strata: Sequence[Stratum],
        plan_ids: Sequence[int],
        context: Tensor,
        skill: Tensor,
        exemplars: Sequence[Sequence[tuple[Event, ...]]],
    ) -> _Scene:
        count = len(strata)
        if encoding.case != grammar.case.name:
            raise ValueError(f"proposer: encoding of {encoding.case!r} with a grammar of {grammar.case.name!r}")
        foreign = next((s for s in strata if s.case != grammar.case.name), None)
        if foreign is not None:
            raise ValueError(f"proposer: stratum {foreign.key()} in a call for {grammar.case.name!r}")
        if not len(plan_ids) == len(exemplars) == context.shape[0] == count or context.shape[1] != CONTEXT:
            raise ValueError(
                f"proposer: {count} strata, {len(plan_ids)} plans, {len(exemplars)} exemplar sets and context "
                f"{tuple(context.shape)}; need one of each per program and context [{count}, {CONTEXT}]"
            )
        masks = masks_of(grammar)
        known = list(dict.fromkeys(plan_ids))
        plans = [masks.plan(plan_id) for plan_id in known]
        plan_P = torch.tensor([known.index(plan_id) for plan_id in plan_ids])
        possible = fn.pad(torch.stack([plan.possible for plan in plans])[plan_P], (0, 1), value=True)
        followers = torch.stack([masks.followers(s) for s in strata]) & possible
        openers = torch.stack([masks.openers(s) for s in strata]) & possible
        openers = torch.where(openers.any(dim=1, keepdim=True), openers, followers)
        places = self._places(encoding)
        stratum = (
            self.side(torch.tensor([SIDES.index(s.side) for s in strata]))
            + self.family(torch.tensor([1 + FAMILIES.index(s.family) if s.family else 0 for s in strata]))
            + self.mode(torch.tensor([MODES.index(s.mode) for s in strata]))
        )
        seen = self._exemplars(places, exemplars)
        grid = places.mean(dim=0).expand(count, -1)
        levels = skill.to(places.dtype).expand(count, len(FAMILIES))
        start = torch.tanh(self.start(torch.cat([stratum, seen, grid, levels, context.to(places.dtype)], dim=1)))
        return _Scene(
            start_PH=start,
            places=places,
            # the usual scale of a dot product, so that the pointer starts near uniform on grids of any size
            keys=self.key(places) / PLACE_WIDTH**0.5,
            plan_P=plan_P,
            place_masks=torch.stack([plan.places for plan in plans]),
            plan_features=torch.stack([plan.features for plan in plans]),
            openers_PK=openers,
            followers_PK=followers,
            slots=masks.slots,
            max_events=grammar.config.max_events,
        )

    def _exemplars(self, places: Tensor, exemplars: Sequence[Sequence[tuple[Event, ...]]]) -> Tensor:
        """[P, PLACE_WIDTH] mean embedding of the events of each set; zero for an empty one."""
        sets = [tuple(programs) for programs in exemplars]
        rows: dict[tuple[tuple[Event, ...], ...], int] = {}
        table: list[list[int]] = []
        owner: list[int] = []
        for programs in sets:
            if programs in rows:
                continue
            row = rows[programs] = len(rows)
            for event in (e for events in programs for e in events):
                if not 0 <= event.target < places.shape[0]:
                    raise ValueError(f"proposer: exemplar {event} points outside the {places.shape[0]} places")
                table.append(encode(event))
                owner.append(row)
        mean = places.new_zeros(len(rows), PLACE_WIDTH)
        if table:
            words, index = torch.tensor(table), torch.tensor(owner)
            embedded = sum((self._embed(places, h, words[:, h]) for h in range(len(HEADS))), places.new_zeros(()))
            number = torch.bincount(index, minlength=len(rows)).clamp(min=1)
            mean = mean.index_add(0, index, embedded) / number[:, None]
        return mean[torch.tensor([rows[programs] for programs in sets])]
