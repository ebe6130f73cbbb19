"""Named performance benchmarks: each module has `run(...) -> dict` of rates, times and ratios of one run.

Flow:    cli bench NAME -> [bench.NAME.run] -> table and one JSON line
"""
