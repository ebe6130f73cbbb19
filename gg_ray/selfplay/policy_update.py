"""How the Proposer learns: REINFORCE++ with a PPO clip and a baseline per stratum (TRR++), no critic.

Flow:    proposer (drafts) + rewards -> PolicySample -> [policy_update]: PolicyQueue -> ProposerLearner -> weights
Source:  selfplay.md, section 11; task baselines: Absolute Zero 2505.03335; REINFORCE++ 2501.03262; PPO 1707.06347
Shapes:  P samples (programs), J events of six slots

Programs are bandit episodes of a few choices, so one truncated importance ratio per program is enough. Advantages are
normalised within a stratum that the scheduler decides, never within something the policy chooses: that would leave the
choice without gradient.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from gg_ray.config import ProposerConfig
from gg_ray.records import F64, I64, Event
from gg_ray.scenario.grammar import Grammar, Stratum
from gg_ray.selfplay.legal import HEADS, CaseEncoding, encode_case
from gg_ray.selfplay.proposer import Proposer

OWN_BATCH = 8
"""A stratum with this many programs in the batch is normalised by itself, a rarer one by its running statistics."""
BASELINE_DECAY = 0.95
GRADIENT_CLIP = 1.0
_GROUPS = {"S": "sensor", "A": "attack"}
_SIZES = ((50, "small"), (500, "medium"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySample:
    """A program the policy wrote, the conditions it was written under, and what it earned."""

    stratum: Stratum
    plan_id: int
    context: tuple[float, float]
    skill: tuple[float, ...]
    """[12] as shown to the policy."""
    exemplars: tuple[tuple[Event, ...], ...]
    tokens: I64
    """[J, 6]"""
    logp: float
    """Under the behaviour policy."""
    reward: float
    policy_version: int
    verifier_version: int

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "plan_id": self.plan_id,
            "logp": self.logp,
            "reward": self.reward,
            "policy_version": self.policy_version,
            "verifier_version": self.verifier_version,
            "stratum": dataclasses.asdict(self.stratum),
            "context": list(self.context),
            "skill": list(self.skill),
            "exemplars": [[dataclasses.asdict(event) for event in events] for events in self.exemplars],
            "tokens": self.tokens.tolist(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PolicySample:
        """Inverse of state_dict."""
        load, wind = state["context"]
        return cls(
            **{name: int(state[name]) for name in ("plan_id", "policy_version", "verifier_version")},
            stratum=Stratum(**state["stratum"]),
            context=(float(load), float(wind)),
            skill=tuple(float(value) for value in state["skill"]),
            exemplars=tuple(tuple(Event(**event) for event in events) for events in state["exemplars"]),
            tokens=np.array(state["tokens"], dtype=np.int64),
            logp=float(state["logp"]),
            reward=float(state["reward"]),
        )


@dataclass(slots=True)
class Baseline:
    """Running mean and mean square of a stratum's rewards, and how many they have seen."""

    mean: float = 0.0
    square: float = 0.0
    count: int = 0

    def update(self, rewards: F64) -> None:
        """Plain averages at first, then exponential ones: a young baseline must not lean on its first reward."""
        weight = max(1.0 - BASELINE_DECAY, rewards.size / (self.count + rewards.size))
        self.mean += weight * (float(rewards.mean()) - self.mean)
        self.square += weight * (float((rewards**2).mean()) - self.square)
        self.count += rewards.size


def stratum_advantages(
    rewards: ArrayLike, strata_keys: Sequence[str], ema: dict[str, Baseline], clip: float = 3.0
) -> F64:
    """(reward - mean) / spread within each stratum, clipped to +-clip.

    Args:    rewards [P];  strata_keys [P] (advantage_key);  ema running statistics per key, updated in place
    Returns: [P]; the mean over a stratum of OWN_BATCH or more programs is 0 before clipping. A rarer stratum uses its
             running statistics, this batch included: one reward alone gives 0.
    Raises:  ValueError if the lengths differ or a reward is not finite.
    """
    r = np.asarray(rewards, dtype=np.float64)
    if r.shape != (len(strata_keys),):
        raise ValueError(f"rewards {r.shape} for {len(strata_keys)} strata keys; need one reward per program")
    if not np.isfinite(r).all():
        raise ValueError(f"reward {r[~np.isfinite(r)][0]} of a {strata_keys[int(np.argmin(np.isfinite(r)))]} program")
    out = np.zeros_like(r)
    keys = np.array(strata_keys, dtype=object)
    for key in dict.fromkeys(strata_keys):
        rows = keys == key
        own = r[rows]
        held = ema.setdefault(key, Baseline())
        held.update(own)
        mean, spread = float(own.mean()), float(own.std())
        if own.size < OWN_BATCH:
            mean, spread = held.mean, math.sqrt(max(0.0, held.square - held.mean**2))
        out[rows] = (own - mean) / (spread + 1e-6)
    return np.clip(out, -clip, clip)


def advantage_key(stratum: Stratum, n_bus: int) -> str:
    """Baseline a program belongs to: task mode, side or family group, and size class of the grid (50 and 500 buses).

    Only what the scheduler decides enters; a family left to the policy has no group.
    """
    size = next((name for limit, name in _SIZES if n_bus <= limit), "large")
    family = stratum.family
    physical = "physical" if family == "T4" else "topology"
    group = _GROUPS.get(family[0], physical) if family else stratum.side
    return f"{stratum.mode}/{group}/{size}"


class PolicyQueue:
    """Samples on their way to the update, in order of arrival.

    Invariant: put == taken + dropped_capacity + dropped_lag + len(queue); never more than 2 x batch are held; take()
    never returns a sample beyond the lags of the settings. Rewards and ratios of older policies mislead, so samples
    expire hard, unlike labelled windows.
    """

    def __init__(self, config: ProposerConfig) -> None:
        self.config = config
        self.capacity = 2 * config.batch
        self.put_count = self.taken = self.dropped_capacity = self.dropped_lag = 0
        self._held: deque[PolicySample] = deque()

    def __len__(self) -> int:
        return len(self._held)

    def put(self, samples: Sequence[PolicySample]) -> None:
        """Append; the oldest make room."""
        self._held.extend(samples)
        self.put_count += len(samples)
        while len(self._held) > self.capacity:
            self._held.popleft()
            self.dropped_capacity += 1

    def take(self, policy_version: int, verifier_version: int) -> list[PolicySample]:
        """The oldest `batch` samples that are fresh at these published versions; empty until there are enough."""
        config = self.config
        fresh = [
            sample
            for sample in self._held
            if policy_version - sample.policy_version <= config.max_policy_lag
            and verifier_version - sample.verifier_version <= config.max_verifier_lag
        ]
        self.dropped_lag += len(self._held) - len(fresh)
        self._held = deque(fresh)
        if len(fresh) < config.batch:
            return []
        self.taken += config.batch
        return [self._held.popleft() for _ in range(config.batch)]

    def metrics(self) -> dict[str, float]:
        return {
            "queue_held": float(len(self._held)),
            "queue_dropped_capacity": float(self.dropped_capacity),
            "queue_dropped_lag": float(self.dropped_lag),
        }

    def state_dict(self) -> dict[str, Any]:
        """Samples and counts as plain JSON values."""
        counts = ("put_count", "taken", "dropped_capacity", "dropped_lag")
        return {**{name: getattr(self, name) for name in counts}, "held": [s.state_dict() for s in self._held]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._held = deque(PolicySample.from_state(item) for item in state["held"])
        self.put_count, self.taken = int(state["put_count"]), int(state["taken"])
        self.dropped_capacity, self.dropped_lag = int(state["dropped_capacity"]), int(state["dropped_lag"])


class ProposerLearner:
    """One epoch of clipped policy gradient per batch.

    Invariant: state_dict is complete: a learner that loads it continues bit for bit. A batch that gives a gradient that
    is not finite changes no weight.
    """

    def __init__(self, proposer: Proposer, config: ProposerConfig, total_updates: int) -> None:
        """total_updates: length of the run, over which the entropy coefficient falls; it stays at its end after."""
        if total_updates < 1:
            raise ValueError(f"proposer learner: total_updates {total_updates}; at least 1")
        self.proposer, self.config, self.total_updates = proposer, config, total_updates
        self.optimizer = torch.optim.Adam(proposer.parameters(), lr=config.lr)
        self.updates = 0
        self.baselines: dict[str, Baseline] = {}
        self._encodings: dict[str, CaseEncoding] = {}

    def entropy_coefficient(self) -> float:
        """Linear from config.entropy to config.entropy_end over total_updates."""
        share = min(1.0, self.updates / self.total_updates)
        return self.config.entropy + share * (self.config.entropy_end - self.config.entropy)

    def update(self, samples: Sequence[PolicySample], grammars: Mapping[str, Grammar]) -> dict[str, float]:
        """One step on a batch of samples.

        Args:    samples   any mix of grids;  grammars  per case, with the configuration under which they were written
        Returns: loss, advantage_abs, reward_mean, ratio_mean, ratio_clip_share, grad_norm, entropy_coefficient,
                 entropy_HEAD (share of the maximum, for heads with open choices), skipped (1 if not finite).
        Raises:  ValueError for an empty batch, a grid without grammar or tokens that its grammar forbids.
        """
        if not samples:
            raise ValueError("proposer learner: empty batch")
        missing = sorted({s.stratum.case for s in samples} - set(grammars))
        if missing:
            raise ValueError(f"proposer learner: no grammar for {', '.join(missing)}; given: {', '.join(grammars)}")
        config = self.config
        keys = [advantage_key(s.stratum, grammars[s.stratum.case].case.n_bus) for s in samples]
        rewards = np.array([s.reward for s in samples])
        advantage = torch.from_numpy(stratum_advantages(rewards, keys, self.baselines, config.advantage_clip))
        coefficient = self.entropy_coefficient()
        logp, entropy, shares = self._evaluate(samples, grammars)
        behaviour = torch.tensor([s.logp for s in samples], dtype=torch.float64)
        ratio = (logp - behaviour).exp()
        truncated = ratio.clamp(max=config.ratio_max)
        clipped = ratio.clamp(1.0 - config.clip, 1.0 + config.clip)
        loss = -torch.minimum(truncated * advantage, clipped * advantage).mean() - coefficient * entropy.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.proposer.parameters(), GRADIENT_CLIP)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
        self.updates += 1
        outside = (ratio - 1.0).abs() > config.clip
        return {
            "loss": float(loss.detach()),
            "advantage_abs": float(advantage.abs().mean()),
            "reward_mean": float(rewards.mean()),
            "ratio_mean": float(ratio.detach().mean()),
            "ratio_clip_share": float(outside.double().mean()),
            "grad_norm": float(norm),
            "entropy_coefficient": coefficient,
            **{f"entropy_{head}": value for head, value in shares.items()},
            "skipped": float(not finite),
        }

    def _evaluate(
        self, samples: Sequence[PolicySample], grammars: Mapping[str, Grammar]
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """logp [P] and entropy [P] in the order of the samples, and the entropy share per head, over all grids."""
        rows: dict[str, list[int]] = {}
        for row, sample in enumerate(samples):
            rows.setdefault(sample.stratum.case, []).append(row)
        parts: list[Tensor] = []
        entropies: list[Tensor] = []
        shares: dict[str, list[tuple[float, int]]] = {head: [] for head in HEADS}
        for case, members in rows.items():
            group = [samples[row] for row in members]
            if case not in self._encodings:
                self._encodings[case] = encode_case(grammars[case].case)
            logp, entropy, by_head = self.proposer.log_prob(
                self._encodings[case],
                grammars[case],
                torch.from_numpy(np.stack([s.tokens for s in group])),
                [s.stratum for s in group],
                [s.plan_id for s in group],
                torch.tensor([s.context for s in group], dtype=torch.float32),
                torch.tensor([s.skill for s in group], dtype=torch.float32),
                [s.exemplars for s in group],
            )
            parts.append(logp)
            entropies.append(entropy)
            for head, share in by_head.items():
                shares[head].append((float(share.detach()), len(group)))
        order = torch.argsort(torch.tensor([row for members in rows.values() for row in members]))
        means = {head: sum(v * n for v, n in got) / sum(n for _, n in got) for head, got in shares.items() if got}
        return torch.cat(parts)[order], torch.cat(entropies)[order], means

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser moments, baselines and the update count: tensors and plain values."""
        return {
            "proposer": self.proposer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "baselines": {key: dataclasses.asdict(base) for key, base in self.baselines.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.proposer.load_state_dict(state["proposer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = int(state["updates"])
        self.baselines = {key: Baseline(**fields) for key, fields in state["baselines"].items()}
