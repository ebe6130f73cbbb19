"""Scoring a model on held-out suites: metrics, result records, figures and the report.

Flow:    scores of verifier and baselines -> [metrics] -> results.json -> [figures], [report] -> report/
"""
