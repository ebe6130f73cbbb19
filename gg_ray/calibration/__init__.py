"""What a score means: p-values by class, a budget of incidents a day, incidents, reasons and drift.

Flow:    verifier, baselines (scores) -> conformal, budget -> incidents, reasons -> score, publish; drift beside them
"""
