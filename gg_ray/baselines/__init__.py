"""Classical detectors, each with the benign windows of the grid and plan it is asked about.

Flow:    verifier.features (Prepared) -> base <- physics, lnr, statistical -> evaluate
Source:  selfplay.md, section 17.3; docs/adr/0010-baselines.md
"""
