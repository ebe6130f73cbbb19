"""The core benchmark as a resumable job: every pool under every scorer, one cell at a time.

Flow:    benchmark_commands -> [core_job: core_pools, core_score] -> core_cells -> core_tables, core_claims, core_report
Source:  selfplay.md, section 17; issue "Benchmark"
Run:     gg-ray evaluate --suite core --preset small --run 'bench-*' --out benchmarks/results/core

Pools are made one part at a time and go when every scorer has seen them; what is kept are cells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gg_ray.baselines import catalogue
from gg_ray.evaluate import results
from gg_ray.evaluate.core_cells import Cells, Kind
from gg_ray.evaluate.core_changes import make_part
from gg_ray.evaluate.core_manifest import Digest, Manifest
from gg_ray.evaluate.core_plan import CoreSizes
from gg_ray.evaluate.core_pools import PoolMaker, PoolPart
from gg_ray.evaluate.core_score import Scorer, answers, day_facts, day_record, validation_records, window_records
from gg_ray.evaluate.scoring import DetectorMethod
from gg_ray.records import Program
from gg_ray.scenario.context import ContextSource

CLASSICAL, RIVALS = "classical", "rivals"
"""Keys of the detectors: physics tests and chance, which the stop-check reads first; everything that learns."""
ATTACKED = (results.VERIFIER, results.UNIFORM, results.PLR)
"""Rows of a run that the exploiter is trained against, where the run has them."""
PER_ATTACK = 0.5
"""Share of core_plan windows per family that suite s7-adaptive asks for."""

Exploit = Callable[[Scorer, str, str, int], Sequence[Program]]
"""(run, row of it, grid, programs per family) -> programs of an exploiter trained against that row."""
Note = Callable[[str], None]


_STOP_CHECK = ("validation", "negatives", "standard", "hard")
"""Parts that the stop-check reads."""
GROUPS: dict[str, tuple[str, ...]] = {
    "small": ("quick",), "desk": ("classical", "statistical", "deep"), "full": ("classical", "statistical", "deep"),
}  # fmt: skip
"""Rivals by preset (baselines.catalogue): the deep ones need minutes per grid."""


def detector_scorers(preset: str, seed: int) -> list[Scorer]:
    """Detectors that are no Verifier: the one place that says which rows every table has beside the networks."""
    found = catalogue.detectors(GROUPS[preset], seed)
    physics = catalogue.GROUPS["classical"]
    out = []
    for key, first in ((CLASSICAL, True), (RIVALS, False)):
        methods = tuple(DetectorMethod(detector) for detector in found if (detector.name in physics) == first)
        identity = f"seed {seed}: {', '.join(m.name for m in methods)}"
        out.append(Scorer(key=key, identity=identity, methods=methods, about={}))
    return out


class CoreRun:
    """One benchmark folder.

    Invariant: a cell is written once per scorer and part; running again makes what is missing and nothing else.
    """

    def __init__(
        self, folder: Path, sizes: CoreSizes, contexts: ContextSource, scorers: Sequence[Scorer], note: Note, seed: int,
        exploit: Exploit | None = None,
    ) -> None:  # fmt: skip
        """Raises: SuiteChanged if the folder holds another benchmark."""
        self.folder, self.sizes, self.contexts, self.note, self.seed = folder, sizes, contexts, note, seed
        self.scorers, self.exploit = list(scorers), exploit
        self.cells = Cells(folder / "cells")
        self.manifest = Manifest(folder / "manifest.json", sizes, contexts.origin)
        self._maker: tuple[str, PoolMaker] | None = None
        self._fit: tuple[str, PoolPart] | None = None
        self._made: dict[tuple[str, str], tuple[PoolPart, Digest]] = {}
        """Parts of seen grids that only the detectors have been asked about."""
        self._fitted: set[tuple[str, str]] = set()
        self._done, self._total = self._count()

    def classical_first(self) -> None:
        """Windows of the seen grids under the physics tests: what the stop-check needs."""
        for case in self.sizes.seen:
            self._windows(case, [s for s in self.scorers if s.key == CLASSICAL], _STOP_CHECK)

    def complete(self) -> None:
        """Everything that is missing: windows, timelines, then the adaptive suite."""
        for case in self.sizes.cases:
            self.grid(case)
        for scorer, method in self.attacks():
            self.attack(scorer, method)

    def grid(self, case: str) -> None:
        """Windows and timelines of one grid, which no other grid's need."""
        self._windows(case, self.scorers, self.sizes.window_parts(case))
        for part in self.sizes.timeline_parts(case):
            self._days(case, part)

    def attacks(self) -> list[tuple[Scorer, str]]:
        """Rows that an exploiter is trained against: of the lowest seeds of every fold."""
        if self.exploit is None:
            return []
        seeds: dict[int, set[int]] = {}
        for scorer in self.scorers:
            if scorer.about:
                seeds.setdefault(int(scorer.about["fold"]), set()).add(int(scorer.about["seed"]))
        chosen = {fold: sorted(own)[: self.sizes.attacked_seeds] for fold, own in seeds.items()}
        return [
            (scorer, method.name) for scorer in self.scorers for method in scorer.methods
            if scorer.about and method.name in ATTACKED and int(scorer.about["seed"]) in chosen[scorer.about["fold"]]
        ]  # fmt: skip

    # --- windows ----------------------------------------------------------------------------------------------------

    def _windows(self, case: str, scorers: Sequence[Scorer], parts: Sequence[str]) -> None:
        todo = {part: self._missing("windows", case, part, scorers) for part in parts}
        for part in parts:
            if not todo[part]:
                continue
            start = time.monotonic()
            made, digest = self._part(case, part)
            self.manifest.take(f"windows/{case}/{part}", digest)
            self._keep(case, part, made, digest.entry()["readings"], todo[part])
            if len(scorers) < len(self.scorers):
                self._made[case, part] = made, digest
            self._say(f"windows {case} {part}: {len(made.facts)} windows", len(todo[part]), start)

    def _part(self, case: str, part: str) -> tuple[PoolPart, Digest]:
        if (case, part) in self._made:
            return self._made.pop((case, part))
        digest = Digest()
        return make_part(self._pool(case), part, digest), digest

    def _keep(self, case: str, part: str, made: PoolPart, mark: str, scorers: Sequence[Scorer]) -> None:
        """Facts of a part, then a cell per scorer."""
        self.cells.write_facts("windows", case, part, mark, [fact.as_json() for fact in made.facts])
        for scorer in scorers:
            self._prepare(case, scorer)
        told = answers(scorers, made) if made.groups else {scorer.key: {} for scorer in scorers}
        for scorer in scorers:
            own = told[scorer.key]
            if part == "validation":
                records = validation_records(own)
            else:
                records = window_records(own, made, self._node_thresholds(case, scorer))
            self.cells.write("windows", case, part, scorer, mark, records)

    def _node_thresholds(self, case: str, scorer: Scorer) -> dict[str, float | None]:
        held = self.cells.records("windows", case, "validation", scorer.key) or {}
        return {method.name: held[method.name]["node_threshold"] for method in scorer.methods}

    def _prepare(self, case: str, scorer: Scorer) -> None:
        """Fit methods that need benign windows of the grid; the same windows for all."""
        if (case, scorer.key) in self._fitted:
            return
        if self._fit is None or self._fit[0] != case:
            digest = Digest()
            self._fit = case, self._pool(case).benign("fit", digest)
            self.manifest.take(f"windows/{case}/fit", digest)
        windows = [group.prepared for group in self._fit[1].groups]
        for method in scorer.methods:
            method.prepare(windows, np.random.default_rng(self.seed))
        self._fitted.add((case, scorer.key))

    # --- timelines --------------------------------------------------------------------------------------------------

    def _days(self, case: str, part: str) -> None:
        todo = self._missing("timelines", case, part, self.scorers)
        if not todo:
            return
        start, digest = time.monotonic(), Digest()
        facts: list[dict[str, Any]] = []
        records: dict[str, dict[str, list[Any]]] = {s.key: {m.name: [] for m in s.methods} for s in todo}
        for scorer in todo:
            self._prepare(case, scorer)
        limits = {scorer.key: self._node_thresholds(case, scorer) for scorer in todo}
        for found in self._pool(case).days(part, digest):
            facts.append(day_facts(found))
            for scorer in todo:
                for method in scorer.methods:
                    record = day_record(method, found, limits[scorer.key][method.name])
                    records[scorer.key][method.name].append(record)
        self.manifest.take(f"timelines/{case}/{part}", digest)
        mark = digest.entry()["readings"]
        self.cells.write_facts("timelines", case, part, mark, facts)
        for scorer in todo:
            self.cells.write("timelines", case, part, scorer, mark, records[scorer.key])
        self._say(f"timelines {case} {part}: {len(facts)} days", len(todo), start)

    # --- adaptive ---------------------------------------------------------------------------------------------------

    def attack(self, scorer: Scorer, method: str) -> None:
        """Suite s7-adaptive against one row of one run, on the first seen grid."""
        assert self.exploit is not None
        case, part = self.sizes.seen[0], adaptive_part(scorer.key, method)
        mark = f"{scorer.identity} {method} {self.sizes.attacks}"
        asked = [s for s in self.scorers if s.key in (CLASSICAL, scorer.key, *scorer.beside)]
        todo = [s for s in asked if not self.cells.has("windows", case, part, s, mark)]
        self._done += len(asked) - len(todo)
        if not todo:
            return
        start = time.monotonic()
        per_family = max(2, round(PER_ATTACK * self.sizes.windows))
        programs = self.exploit(scorer, method, case, per_family)
        made = self._pool(case).written(programs, part, per_family, Digest())
        self._keep(case, part, made, mark, todo)
        self._say(f"adaptive {case} against {method} of {scorer.key}: {len(made.facts)} windows", len(todo), start)

    # --- bookkeeping ------------------------------------------------------------------------------------------------

    def _pool(self, case: str) -> PoolMaker:
        if self._maker is None or self._maker[0] != case:
            self._maker = case, PoolMaker(case, self.sizes, self.contexts)
        return self._maker[1]

    def _missing(self, kind: Kind, case: str, part: str, scorers: Sequence[Scorer]) -> list[Scorer]:
        entry = self.manifest.content["parts"].get(f"{kind}/{case}/{part}")
        mark = None if entry is None else entry["readings"]
        return [s for s in scorers if not self.cells.has(kind, case, part, s, mark)]

    def _count(self) -> tuple[int, int]:
        """Cells that are there already, and cells in all."""
        done = total = 0
        for case in self.sizes.cases:
            asked: list[tuple[Kind, str]] = [("windows", part) for part in self.sizes.window_parts(case)]
            asked += [("timelines", part) for part in self.sizes.timeline_parts(case)]
            for kind, part in asked:
                total += len(self.scorers)
                done += len(self.scorers) - len(self._missing(kind, case, part, self.scorers))
        known = {CLASSICAL, *(s.key for s in self.scorers)}
        return done, total + sum(2 + len(known.intersection(s.beside)) for s, _ in self.attacks())

    def _say(self, text: str, cells: int, start: float) -> None:
        self._done += cells
        self.note(f"[{self._done}/{self._total} cells] {text}, {cells} scorers, {time.monotonic() - start:.0f} s")


def adaptive_part(scorer: str, method: str) -> str:
    """Name of the part that an exploiter made against a row of a run."""
    return f"adaptive-{scorer}-{method}"
