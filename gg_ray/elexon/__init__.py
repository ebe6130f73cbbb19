"""Elexon's public data: sources behind one protocol, rows checked at the edge, histories on disk, scans out.

Flow:    Insights API, IRIS, legacy package, files -> source -> rows -> store, check, scans -> scenario, evaluate
"""
