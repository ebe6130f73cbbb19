"""Ray shells over the core, one file per box of TRAIN; nothing here holds an algorithm.

Flow:    session (start Ray) -> placement (who runs where) -> pool (calls in flight) -> board (weights out)
"""
