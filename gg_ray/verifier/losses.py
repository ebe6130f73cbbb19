"""What the Verifier is trained on: verdict, places, type, severity, denoised state, power balance, twins.

Flow:    model -> [losses] -> learner
Source:  selfplay.md section 9 (Verifier loss); focal loss (Lin et al. 1708.02002); pi-branch as in MATPOWER's manual
Shapes:  B graphs, Nt buses, Et branches, P twin pairs
"""

from __future__ import annotations

import torch
import torch.nn.functional as fn
from torch import Tensor

from gg_ray.config import LossConfig
from gg_ray.verifier.batch import GraphBatch
from gg_ray.verifier.gat import sum_by
from gg_ray.verifier.model import STATE_SCALE, VerifierOutput

LOGVAR_LIMIT = 6.0
"""Log-variance of the state is clamped to +-this: a standard deviation between 1/20 and 20 state units."""
HUBER_DELTA = 3.0
"""Power mismatches beyond this many standard deviations count linearly: a bad reading must not steer the state."""
STATE_NOISE = 1e-3
"""State error (rad, p.u.) that is forgiven in the power mismatch: short lines amplify it by their admittance."""
_NO_IMPEDANCE = 1e-12


def verifier_loss(
    output: VerifierOutput, batch: GraphBatch, config: LossConfig, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of all terms.

    Args:    batch  labelled;  step  learner step, for the warm-up of the physics term
    Returns: scalar loss, and the unweighted terms by name (detached scalars, `total` included).
    Raises:  ValueError for a batch without labels.
    """
    y_impl, y_type, state = batch.y_impl, batch.y_type, batch.state
    y_dist, severity, y_node, y_edge = batch.y_dist, batch.severity, batch.y_node, batch.y_edge
    if y_impl is None or y_dist is None or severity is None or y_type is None:
        raise ValueError("verifier_loss needs a labelled batch: collate(..., labelled=True)")
    if y_node is None or y_edge is None or state is None or batch.weight is None:
        raise ValueError("verifier_loss needs node, edge and state labels: collate(..., labelled=True)")
    if batch.pairs is None or batch.pair_d is None:
        raise ValueError("verifier_loss needs pairs of windows and twins: collate(..., labelled=True)")
    weight = batch.weight
    terms = {
        "implausible": _balanced_bce(output.implausible, y_impl, weight),
        "disturbance": (
            weight * fn.binary_cross_entropy_with_logits(output.disturbance, y_dist, reduction="none")
        ).mean(),
        "type": _type_ce(output.type, y_type, y_impl, weight),
        "severity": (weight * (output.severity - severity).square()).mean(),
        "node": focal_bce(output.node, y_node, weight[batch.graph], config.focal_gamma, batch.n_graphs),
        "edge": focal_bce(output.edge, y_edge, weight[batch.edge_graph], config.focal_gamma, batch.n_graphs),
        "state": _state_nll(output, state, weight[batch.graph]),
        "physics": power_mismatch(output.state_mu, batch),
        "twin": _twin_hinge(output.implausible, batch.pairs, batch.pair_d, config),
    }
    share = {
        "implausible": 1.0,
        "disturbance": config.disturbance,
        "type": config.type,
        "severity": config.severity,
        "node": config.node,
        "edge": config.edge,
        "state": config.state,
        "physics": config.physics * _warm(config, step),
        "twin": config.twin,
    }
    total = torch.stack([share[name] * term for name, term in terms.items()]).sum()
    return total, {name: term.detach() for name, term in terms.items()} | {"total": total.detach()}


def reconstruction_loss(
    output: VerifierOutput, batch: GraphBatch, config: LossConfig, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Likelihood of the true state, and lightly the mismatch with injection readings that the network may not have had.

    Args:    batch  labelled;  step  for the warm-up of the physics term, as in `verifier_loss`
    Returns: scalar loss, and its terms by name (detached); state_error and estimator_error are root mean square errors
             in units of STATE_SCALE, of the state that comes out and of the estimate that went in.
    Raises:  ValueError for a batch without labels.
    """
    if batch.state is None or batch.weight is None:
        raise ValueError("reconstruction_loss needs true states: collate(..., labelled=True)")
    state = _state_nll(output, batch.state, batch.weight[batch.graph])
    physics = power_mismatch(output.state_mu, batch)
    total = state + config.physics * _warm(config, step) * physics
    errors = {"state_error": output.state_mu.detach() - batch.state, "estimator_error": batch.xhat - batch.state}
    scale = batch.state.new_tensor(STATE_SCALE)
    terms = {name: (error / scale).square().mean().sqrt() for name, error in errors.items()}
    return total, terms | {"state": state.detach(), "physics": physics.detach(), "total": total.detach()}


def _warm(config: LossConfig, step: int) -> float:
    return min(1.0, step / max(1, config.physics_warmup_steps))


def focal_bce(logit: Tensor, target: Tensor, weight: Tensor, gamma: float, n_graphs: int) -> Tensor:
    """Focal binary cross-entropy per positive; at least n_graphs positives are assumed so benign batches stay calm.

    Args:    logit, target, weight [M];  gamma  focusing exponent, 0 gives plain cross-entropy
    """
    cross_entropy = fn.binary_cross_entropy_with_logits(logit, target, reduction="none")
    # 1 - p_t from the logit itself: exact near 0 and 1, where 1 - exp(-ce) loses all digits
    miss = torch.sigmoid(torch.where(target > 0.5, -logit, logit))
    focus = miss.clamp(min=1e-8).pow(gamma)
    return (weight * focus * cross_entropy).sum() / target.sum().clamp(min=float(n_graphs))


def bus_injections(v: Tensor, angle: Tensor, edge_index: Tensor, edge_phys: Tensor, node_shunt: Tensor) -> Tensor:
    """Net P and Q injection (generation less load, shunts excluded) that the state implies, any float type.

    Args:    v, angle [N] p.u. and rad;  edge_index [2, E];  edge_phys [E, 6] r, x, b, tap, shift, status
             node_shunt [N, 2] gs, bs
    Returns: [N, 2] p.u.: flow into all branches (pi model, ideal transformer at the from end) plus what the shunt
             draws. A branch without impedance (r = x = 0) carries nothing here.
    """
    r, x, b, tap, shift, status = edge_phys.unbind(dim=1)
    square = r * r + x * x
    g = status * r / square.clamp(min=_NO_IMPEDANCE)
    series = -status * x / square.clamp(min=_NO_IMPEDANCE)
    shunt = series + 0.5 * status * b
    start, stop = edge_index
    v_from, v_to = v[start] / tap, v[stop]
    delta = angle[start] - angle[stop] - shift
    product = v_from * v_to
    through_cos, through_sin = product * delta.cos(), product * delta.sin()
    p_from = g * v_from.square() - g * through_cos - series * through_sin
    p_to = g * v_to.square() - g * through_cos + series * through_sin
    q_from = -shunt * v_from.square() + series * through_cos - g * through_sin
    q_to = -shunt * v_to.square() + series * through_cos + g * through_sin
    ends = torch.cat((torch.stack((p_from, q_from), dim=1), torch.stack((p_to, q_to), dim=1)))
    drawn = v.square()[:, None] * node_shunt * v.new_tensor([1.0, -1.0])
    return drawn.index_add(0, edge_index.reshape(-1), ends)


def power_mismatch(state: Tensor, batch: GraphBatch) -> Tensor:
    """Robust mean of squared power mismatch between a state [Nt, 2] and the injection readings, in their sigmas.

    Buses without a reading, and buses next to a branch whose impedance is unknown, are left out. 0 if none remain.
    """
    index, phys = batch.edge_index, batch.edge_phys
    implied = bus_injections(1 + state[:, 0], state[:, 1], index, phys, batch.node_shunt)
    impedance = torch.hypot(phys[:, 0], phys[:, 1])
    absent = (impedance.square() <= _NO_IMPEDANCE).to(state.dtype) * phys[:, 5]
    admittance = phys[:, 5] / impedance.clamp(min=_NO_IMPEDANCE**0.5)
    ends = index.reshape(-1)
    at_bus = sum_by(torch.stack((absent, admittance), dim=1).repeat(2, 1), ends, state.shape[0])
    known = (torch.isfinite(batch.sigma) & (batch.sigma > 0) & (at_bus[:, :1] == 0)).to(state.dtype)
    sigma = torch.where(known > 0, batch.sigma, 1.0)
    z = known * (batch.meas - implied) / torch.hypot(sigma, STATE_NOISE * at_bus[:, 1:])
    return fn.huber_loss(z, torch.zeros_like(z), reduction="sum", delta=HUBER_DELTA) / known.sum().clamp(min=1.0)


def _balanced_bce(logit: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy with both classes worth one half, whatever their numbers; with one class only, a plain mean."""
    cross_entropy = weight * fn.binary_cross_entropy_with_logits(logit, target, reduction="none")
    positives = target.sum()
    negatives = target.numel() - positives
    classes = (positives > 0).to(logit.dtype) + (negatives > 0).to(logit.dtype)
    share = target / positives.clamp(min=1.0) + (1 - target) / negatives.clamp(min=1.0)
    return (share * cross_entropy).sum() / classes


def _type_ce(logit: Tensor, target: Tensor, implausible: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy over implausible windows of a family and plausible ones; solver-made ones have no family."""
    kept = weight * ((implausible > 0.5) == (target > 0)).to(logit.dtype)
    cross_entropy = fn.cross_entropy(logit, target, reduction="none")
    return (kept * cross_entropy).sum() / (kept > 0).sum().clamp(min=1)


def _state_nll(output: VerifierOutput, state: Tensor, weight: Tensor) -> Tensor:
    """Gaussian negative log-likelihood of the true state in units of STATE_SCALE, without its constant."""
    error = (state - output.state_mu) / state.new_tensor(STATE_SCALE)
    logvar = output.state_logvar.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)
    return (weight[:, None] * 0.5 * (logvar + error.square() * torch.exp(-logvar))).mean()


def _twin_hinge(logit: Tensor, pairs: Tensor, d_eff: Tensor, config: LossConfig) -> Tensor:
    """Mean of [margin - (anomalous - twin)]_+ over pairs; 0 without pairs.

    The margin rises with d_eff, since the log-likelihood ratio that the logit stands for does (Neyman and Pearson 1933:
    its means under the two hypotheses lie d_eff^2 apart). Cross-entropy alone stops asking once a window is classified.
    """
    gap = logit[pairs[0]] - logit[pairs[1]]
    margin = (config.twin_slope * d_eff).clamp(config.twin_margin, config.twin_limit)
    return fn.relu(margin - gap).sum() / max(1, pairs.shape[1])
