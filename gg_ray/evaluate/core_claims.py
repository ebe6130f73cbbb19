"""What the core benchmark may claim: the stop-check, the primary hypotheses with Holm, and flags of what looks wrong.

Flow:    core_tables (records, rows) -> [core_claims] -> core_report, console
Source:  selfplay.md, sections 17.4 (hypotheses) and 19 (stop-check); verifier.md, section 3.7 (ceiling)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gg_ray.evaluate import metrics, results
from gg_ray.evaluate.core_job import CLASSICAL, adaptive_part
from gg_ray.evaluate.core_plan import ALARM_RATES, SUITES
from gg_ray.evaluate.core_score import Scorer
from gg_ray.evaluate.core_tables import CoreRow, Tables, behaviour_cells, cvar_over_cells
from gg_ray.evaluate.inference import Block, Difference, Paired, Unpaired, difference, holm, mean_of
from gg_ray.evaluate.job import CLASSICAL as PHYSICS
from gg_ray.evaluate.report import LEAK_MARGIN
from gg_ray.evaluate.results import MACRO, REFERENCES, UNIFORM, VERIFIER
from gg_ray.evaluate.suites import DAY_SCANS
from gg_ray.records import F64, FOLDS, I64

CLASSICAL_LIMIT, ORACLE_LEAST = 0.80, 0.90
_HARD_AND_NEW = ("s1-hard", "s3-families")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One primary hypothesis: a paired difference, with the p-value that Holm allows."""

    hypothesis: str
    figure: str
    where: str
    ours: str
    theirs: str
    difference: Difference
    p_holm: float
    strata: int
    seeds: int
    """Fewest training seeds of a fold; with one, the interval says nothing about training again."""


# --- stop-check -----------------------------------------------------------------------------------------------------


def stop_check(tables: Tables) -> list[str]:
    """One line per fold and a verdict: the best classical test below 80 %, the oracle above 90 % on s1-hard and s3.

    Reads the cells of the classical detectors alone, so it can be printed before any network is asked.
    """
    lines, good = [], True
    for fold in range(len(FOLDS)):
        best, ceiling = _reached(tables, fold)
        if not best:
            continue
        name = max(best, key=lambda method: best[method])
        fine = best[name] < CLASSICAL_LIMIT and ceiling > ORACLE_LEAST
        good &= fine
        lines.append(
            f"stop-check, fold {fold}, s1-hard and s3-families on {', '.join(tables.sizes.seen)}: best classical {name}"
            f" {best[name]:.3f} (must be < {CLASSICAL_LIMIT}), oracle {ceiling:.3f} (must be > {ORACLE_LEAST}):"
            f" {'ok' if fine else 'FAILED'}"
        )
    advice = "the benchmark is neither trivial nor hopeless" if good else "retune meters, noise or magnitudes first"
    return [*lines, f"stop-check: {'passed' if good and lines else 'FAILED'}: {advice}"]


def _reached(tables: Tables, fold: int) -> tuple[dict[str, float], float]:
    """Balanced accuracy of the physics tests and of the oracle, mean over (grid, suite, family)."""
    found: dict[str, list[float]] = {}
    ceilings: list[float] = []
    for case in tables.sizes.seen:
        calm = tables.records("windows", case, "negatives", CLASSICAL)
        for suite, _family, at in _sets(tables, fold, case):
            part = str(SUITES[suite].part)
            told = tables.records("windows", case, part, CLASSICAL)
            facts = tables.facts("windows", case, part)
            ceilings.append(float(metrics.oracle_accuracy([facts[i]["d_eff"] for i in at]).mean()))
            for method in (m for m in PHYSICS if m in told):
                value = metrics.balanced_accuracy(
                    calm[method]["score"], np.array(told[method]["score"])[at],
                    tables.threshold(case, CLASSICAL, method),
                )  # fmt: skip
                found.setdefault(method, []).append(value)
    return {m: float(np.mean(values)) for m, values in found.items()}, float(np.mean(ceilings)) if ceilings else 0.0


def _sets(tables: Tables, fold: int, case: str) -> Iterator[tuple[str, str, I64]]:
    """(suite, family, positions) of the windows of s1-hard and s3-families of a fold on a grid."""
    for name in _HARD_AND_NEW:
        suite = SUITES[name]
        at = tables.members(suite, fold, case)
        facts = tables.facts("windows", case, str(suite.part))
        for family in sorted({facts[i]["family"] for i in at}, key=results.family_order):
            own = np.array([i for i in at if facts[i]["family"] == family], dtype=np.int64)
            yield name, family, _in_blocks(facts, own, "")[0]


# --- hypotheses -----------------------------------------------------------------------------------------------------


def claims(tables: Tables, seed: int) -> list[Claim]:
    """H1 to H4 of the Verifier, as far as their rows exist; Holm over all of them."""
    drafts: list[tuple[str, str, str, str, list[Paired] | list[Unpaired]]] = []
    for rival in ("chi2", "lnr", "lnr_own", "lnr_scan", "innovation", "chi2_or_innovation"):
        drafts.append(("H1", "balanced accuracy", "s1-hard and s3-families, windows", rival, _hits(tables, rival)))
    for rival in results.CONTROLS:
        drafts.append(
            ("H2", "event recall at budget", "s3-families and s5-both, timelines", rival, _events(tables, rival))
        )
        drafts.append(("H3", "cvar20 of recall", "all families on seen grids, windows", rival, _tails(tables, rival)))
    drafts.append(("H4", "recall under attack", "s7-adaptive, windows", UNIFORM, _attacked(tables)))
    drafts = [draft for draft in drafts if draft[4]]
    rng = np.random.default_rng(seed)
    found = [difference(strata, rng) for *_, strata in drafts]
    adjusted = holm([d.p for d in found])
    return [
        Claim(
            hypothesis=name, figure=figure, where=where, ours=VERIFIER, theirs=rival, difference=d, p_holm=p,
            strata=len(strata), seeds=min(s.ours_RB.shape[0] if isinstance(s, Paired) else 1 for s in strata),
        )
        for (name, figure, where, rival, strata), d, p in zip(drafts, found, adjusted, strict=True)
    ]  # fmt: skip


def _runs_of(tables: Tables, rival: str) -> dict[int, list[tuple[str, str]]]:
    """By fold: (run, scorer of the rival) where both rows exist.

    A control comes from the run itself, or else from a run of the same fold and seed that was trained as that arm.
    """
    out: dict[int, list[tuple[str, str]]] = {}
    for run in tables.runs:
        names = [m.name for m in run.methods]
        if VERIFIER not in names:
            continue
        whose = CLASSICAL
        if rival in results.CONTROLS:
            same = [run, *(r for r in tables.runs if _twin_of(r, run))]
            having = [r.key for r in same if rival in [m.name for m in r.methods]]
            if not having:
                continue
            whose = having[0]
        out.setdefault(int(run.about["fold"]), []).append((run.key, whose))
    return out


def _twin_of(other: Scorer, run: Scorer) -> bool:
    """Whether another run has the fold and the seed of this one."""
    return all(other.about[name] == run.about[name] for name in ("fold", "seed"))


def _hits(tables: Tables, rival: str) -> list[Paired]:
    """H1: weighted hits whose mean is the balanced accuracy, families and suites with equal weight."""
    out = []
    for fold, runs in _runs_of(tables, rival).items():
        for case in tables.sizes.seen:
            sets = list(_sets(tables, fold, case))
            rows: list[list[F64]] = [[], []]
            for run, scorer in runs:
                for side, (key, method) in enumerate(((run, VERIFIER), (scorer, rival))):
                    found = _weighted(tables, case, key, method, sets)
                    if found is not None:
                        rows[side].append(found)
            if rows[0] and len(rows[0]) == len(rows[1]):
                blocks: tuple[Block, ...] = ((f"{case} negatives", len(tables.facts("windows", case, "negatives"))),)
                for suite, _, at in sets:
                    part = str(SUITES[suite].part)
                    blocks += _in_blocks(tables.facts("windows", case, part), at, f"{case} {part}")[1]
                out.append(Paired(np.stack(rows[0]), np.stack(rows[1]), mean_of, f"fold {fold}", blocks))
    return out


def _in_blocks(facts: Sequence[Mapping[str, Any]], at: I64, where: str) -> tuple[I64, tuple[Block, ...]]:
    """Positions with episodes of one kind side by side, and these kinds as blocks that all folds share.

    A kind is a set of families that must be known: a fold has all episodes of a kind or none.
    """
    kinds = np.array(["+".join(facts[i]["needs"]) for i in at])
    names, counts = np.unique(kinds, return_counts=True)
    blocks = tuple((f"{where} {name}", int(count)) for name, count in zip(names, counts, strict=True))
    return at[np.argsort(kinds, kind="stable")], blocks


def _weighted(
    tables: Tables, case: str, scorer: str, method: str, sets: Sequence[tuple[str, str, I64]]
) -> F64 | None:  # fmt: skip
    calm = tables.records("windows", case, "negatives", scorer)
    if method not in calm or not sets:
        return None
    threshold = tables.threshold(case, scorer, method)
    negative = np.array(calm[method]["score"]) <= threshold
    total = negative.size + sum(at.size for *_, at in sets)
    parts = [negative * (total / (2.0 * negative.size))]
    for suite, _, at in sets:
        told = tables.records("windows", case, str(SUITES[suite].part), scorer)[method]
        parts.append((np.array(told["score"])[at] > threshold) * (total / (2.0 * len(sets) * at.size)))
    return np.concatenate(parts)


def _events(tables: Tables, rival: str) -> list[Paired]:
    """H2: found or not, per episode of a held-out family, families with equal weight."""
    out = []
    for fold, runs in _runs_of(tables, rival).items():
        for name, cases in (("s3-families", tables.sizes.seen), ("s5-both", tables.sizes.unseen)):
            for case in cases:
                at = tables.members(SUITES[name], fold, case, "timelines")
                if not at.size:
                    continue
                facts = [day["fact"] for day in tables.facts("timelines", case, str(SUITES[name].part))]
                at, blocks = _in_blocks(facts, at, f"{case} days")
                families = np.array([facts[i]["family"] for i in at])
                names, counts = np.unique(families, return_counts=True)
                size = dict(zip(names.tolist(), counts.tolist(), strict=True))
                weight = np.array([at.size / (names.size * size[f]) for f in families.tolist()])
                pairs = [
                    [
                        _found(tables, case, key, method, at) * weight
                        for key, method in ((run, VERIFIER), (scorer, rival))
                    ]
                    for run, scorer in runs
                    if tables.records("timelines", case, "standard", run)
                ]
                if pairs:
                    ours, theirs = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
                    out.append(Paired(ours, theirs, mean_of, f"fold {fold}", blocks))
    return out


def _found(tables: Tables, case: str, scorer: str, method: str, at: I64) -> F64:
    """[K] 1 for each day of the standard part whose episode is found at the first alarm rate."""
    per_day = DAY_SCANS / tables.sizes.stride
    benign = [np.array(day["score"]) for day in tables.records("timelines", case, "validation", scorer)[method]]
    limit = metrics.threshold_for_budget(benign, ALARM_RATES[0], scans_per_day=per_day)
    days = tables.facts("timelines", case, "standard")
    told = tables.records("timelines", case, "standard", scorer)[method]
    spans = [days[i]["event"][0][:2] for i in at]
    return np.array([max(told[i]["score"][a:b]) > limit for i, (a, b) in zip(at, spans, strict=True)], dtype=float)


def _tails(tables: Tables, rival: str) -> list[Paired]:
    """H3: recall of the worst fifth of the behaviour cells, all twelve families of the standard part."""
    out = []
    for fold, runs in _runs_of(tables, rival).items():
        for case in tables.sizes.seen:
            facts = tables.facts("windows", case, "standard")
            order, blocks = _in_blocks(facts, np.arange(len(facts)), f"{case} standard")
            cells = behaviour_cells(facts)[order]

            def worst(values_B: F64, drawn: I64, cells: I64 = cells) -> float:
                return cvar_over_cells(values_B[drawn], cells[drawn])

            rows = [
                [_flags(tables, case, "standard", key, m)[order] for key, m in ((run, VERIFIER), (scorer, rival))]
                for run, scorer in runs
            ]
            if rows and cells.size:
                ours, theirs = (np.stack([row[side] for row in rows]) for side in (0, 1))
                out.append(Paired(ours, theirs, worst, f"fold {fold}", blocks))
    return out


def _attacked(tables: Tables) -> list[Unpaired]:
    """H4: recall of each on the windows of its own exploiter."""
    case = tables.sizes.seen[0]
    out = []
    for run, rival in (pair for pairs in _runs_of(tables, UNIFORM).values() for pair in pairs):
        sides = []
        for key, method in ((run, VERIFIER), (rival, UNIFORM)):
            part = adaptive_part(key, method)
            if method in tables.records("windows", case, part, key):
                sides.append(_flags(tables, case, part, key, method))
        if len(sides) == 2 and all(side.size for side in sides):
            out.append(Unpaired(sides[0], sides[1]))
    return out


def _flags(tables: Tables, case: str, part: str, scorer: str, method: str) -> F64:
    """[B] 1 for every window of a part that is flagged."""
    scores = np.array(tables.records("windows", case, part, scorer)[method]["score"])
    return np.asarray(scores > tables.threshold(case, scorer, method), dtype=float)


# --- what looks wrong -----------------------------------------------------------------------------------------------


def flags(rows: Iterable[CoreRow]) -> list[str]:
    """Suspected leaks, training that did not help, chance rows off one half.

    A leak is a balanced accuracy above the ceiling by more than LEAK_MARGIN and two standard errors of the recall.
    """
    out = []
    groups: dict[tuple[str, str, int, str, int], dict[str, CoreRow]] = {}
    for r in rows:
        if r.kind == "windows" and r.row.family == MACRO:
            groups.setdefault((r.suite, r.case, r.fold, r.model, r.seed), {})[r.row.method] = r
        value, ceiling = r.row.balanced_accuracy, r.row.ceiling
        if r.kind != "windows" or r.row.method in REFERENCES or value is None or ceiling is None:
            continue
        if value > ceiling + LEAK_MARGIN + 2.0 * float(np.sqrt(ceiling * (1.0 - ceiling) / max(1, r.count))):
            out.append(
                f"suspected leak: {r.row.method} on {r.suite}/{r.row.family}, {r.case}, fold {r.fold}: balanced"
                f" accuracy {value:.3f} above the oracle ceiling {ceiling:.3f} ({r.count} windows)"
            )
    for (suite, case, fold, model, _), by_method in groups.items():
        out += _of_group(f"{suite}, {case}, fold {fold}, {model}", by_method)
    return out


def _of_group(where: str, by_method: Mapping[str, CoreRow]) -> list[str]:
    out = []
    ours, untrained = by_method.get(VERIFIER), by_method.get(results.UNTRAINED)
    if ours is not None and untrained is not None:
        mine, other = ours.row.balanced_accuracy, untrained.row.balanced_accuracy
        if mine is not None and other is not None and mine <= other:
            out.append(f"training did not help: {where}: {mine:.3f} against {other:.3f} of the untrained network")
    chance = by_method.get(results.RANDOM)
    if chance is not None and chance.row.auroc is not None and abs(chance.row.auroc - 0.5) > 0.1:
        out.append(f"too few windows: {where}: a random score has AUROC {chance.row.auroc:.3f}")
    return out


def missing_folds(tables: Tables) -> list[str]:
    """Folds without a run, and which families of windows nothing is therefore said about."""
    have = {int(run.about["fold"]) for run in tables.runs if VERIFIER in [m.name for m in run.methods]}
    return [
        f"fold {fold} has no run: families {', '.join(sorted(FOLDS[fold]))} were not tested as unknown ones; train one"
        f" with gg-ray train --scenario.fold {fold} --name bench-f{fold}"
        for fold in range(len(FOLDS))
        if fold not in have
    ]
