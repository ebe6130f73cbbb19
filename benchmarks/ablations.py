"""Which parts of the Verifier pay: the full model and each variant of it on the same uniformly drawn windows.

Flow:    ablation_bed (windows, suite) -> one network per variant and seed -> results.jsonl, scores -> ablation_report
Run:     python -m benchmarks.ablations --cache scratch                          # every variant, seeds 0 and 1
         python -m benchmarks.ablations --cache scratch --variants full Jacobian --seeds 0

One line per variant and seed is written as it finishes; lines that are there are not made again. Then the report is
drawn from all of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ablation_bed import Scores, Sizes, bed_of, figures, score, train
from benchmarks.ablation_report import write_report
from benchmarks.ablation_variants import VARIANTS
from gg_ray import provenance

RESULTS = Path(__file__).parent / "results" / "ablations"


def lines_of(path: Path, sizes: Sizes) -> list[dict[str, Any]]:
    """Finished lines of these sizes."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if (line["steps"], line["rounds"], line["windows"]) == _key(sizes)]


def _key(sizes: Sizes) -> tuple[int, int, int]:
    return sizes.steps, sizes.rounds, sizes.windows


def scores_path(cache: Path, name: str, seed: int, sizes: Sizes) -> Path:
    slug = "".join(c if c.isalnum() else "_" for c in name)
    return cache / f"scores-{slug}-seed{seed}-{sizes.steps}-{sizes.rounds}-{sizes.windows}.npz"


def run_one(name: str, seed: int, sizes: Sizes, cache: Path) -> dict[str, Any]:
    """Train and judge one variant; its scores go into the cache, its line is returned."""
    variant, start = VARIANTS[name], time.process_time()
    bed = bed_of(variant.scans, sizes, cache)
    ready = time.process_time()
    scores = score(train(bed, variant, sizes.steps, seed), bed)
    np.savez(
        scores_path(cache, name, seed, sizes), logit_B=scores.logit_B, node_BN=scores.node_BN.astype(np.float32),
        limits=np.array([scores.limit, scores.node_limit]),
    )  # fmt: skip
    steps, rounds, windows = _key(sizes)
    line = {"variant": name, "seed": seed, "steps": steps, "rounds": rounds, "windows": windows}
    line |= {key: round(value, 4) if np.isfinite(value) else None for key, value in figures(scores, bed).items()}
    return line | {
        "training_windows": len(bed.training), "suite": bed.digest, "data_cpu_s": round(ready - start),
        "cpu_s": round(time.process_time() - ready), "commit": provenance.git_commit(),
    }  # fmt: skip


def load_scores(path: Path) -> Scores:
    with np.load(path) as held:
        return Scores(held["logit_B"], held["node_BN"].astype(np.float64), *held["limits"].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for windows, features and scores")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for results.jsonl, table and figure")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=Sizes.steps)
    parser.add_argument("--rounds", type=int, default=Sizes.rounds)
    parser.add_argument("--windows", type=int, default=Sizes.windows, help="test windows per family")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = Sizes(steps=options.steps, rounds=options.rounds, windows=options.windows)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.jsonl"
    for seed in options.seeds:
        for name in options.variants:
            if any((line["variant"], line["seed"]) == (name, seed) for line in lines_of(path, sizes)):
                continue
            line = json.dumps(run_one(name, seed, sizes, options.cache))
            with path.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)
    lines = lines_of(path, sizes)
    found = {(line["variant"], line["seed"]): scores_path(options.cache, line["variant"], line["seed"], sizes)
             for line in lines}  # fmt: skip
    beds = {VARIANTS[line["variant"]].scans for line in lines}
    write_report(
        options.out, lines, {key: load_scores(path) for key, path in found.items() if path.exists()},
        {scans: bed_of(scans, sizes, options.cache) for scans in sorted(beds)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
