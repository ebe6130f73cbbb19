"""Sum-tree over priorities: batched writes and prefix-sum draws in numpy, with a loop over levels only.

Flow:    selectors.SlotIndex -> [sumtree] -> selectors.Prioritized
Source:  Schaul et al., Prioritized Experience Replay, 1511.05952, appendix B.2.1
Shapes:  K written or drawn slots; node 1 is the root, node i has children 2i and 2i + 1, leaves start at node `leaves`
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Where = slice | I64
"""Slots: a contiguous range (fast: no gather) or an index array."""

_HOP = 1024
"""Widest level that a draw enters by one cumulative sum instead of one step per level above it."""


class SumTree:
    """Non-negative float64 weights of `capacity` slots, drawn in proportion to weight.

    Invariant: every inner node equals the float sum of its two children, so the root equals the pairwise sum of the
    leaves at all times. Parents are recomputed, never incremented: no drift builds up over any number of writes.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"SumTree: capacity {capacity}; need at least 1")
        self.capacity = capacity
        self._leaves = 1 << (capacity - 1).bit_length()
        self._node: F64 = np.zeros(2 * self._leaves)

    @property
    def total(self) -> float:
        """Sum of all weights: the root."""
        return float(self._node[1])

    def weights(self, where: Where) -> F64:
        """Copy of the weights of the given slots, [K]."""
        return self._node[self._leaves : self._leaves + self.capacity][where].copy()

    def update(self, where: Where, weights_K: F64 | float) -> None:
        """Set the weights of the given slots; of a slot named twice the last value holds.

        Raises:  ValueError if a weight is negative, infinite or NaN, or a slot lies outside the tree.
        """
        values = np.asarray(weights_K, dtype=np.float64)
        if values.size and not (values.min() >= 0.0 and values.max() < np.inf):
            raise ValueError("SumTree: weights must be finite and not negative; clip or drop them before the write")
        if isinstance(where, slice):
            self._update_range(where, values)
        elif where.size:
            self._update_scattered(where, values)

    def _update_range(self, where: slice, values: F64) -> None:
        low, high, _ = where.indices(self.capacity)
        if where.stop > self.capacity or where.step not in (None, 1):
            raise ValueError(f"SumTree: range {where} leaves the {self.capacity} slots or has a step")
        if high <= low:
            return
        node = self._node
        low, high = low + self._leaves, high + self._leaves
        node[low:high] = values
        while low > 1:
            low, high = low >> 1, (high + 1) >> 1
            if high - low <= 2:  # near the root two scalar sums are cheaper than one array sum
                for at in range(low, high):
                    node[at] = node[2 * at] + node[2 * at + 1]
                continue
            np.add(node[2 * low : 2 * high : 2], node[2 * low + 1 : 2 * high : 2], out=node[low:high])

    def _update_scattered(self, where: I64, values: F64) -> None:
        if where.min() < 0 or where.max() >= self.capacity:
            raise ValueError(f"SumTree: slots {where.min()}..{where.max()} leave the {self.capacity} slots")
        node, width = self._node, self._leaves
        at = where + self._leaves
        node[at] = values
        while width > 1:
            width >>= 1
            if width <= at.size:  # a whole level is cheaper than gathering as many nodes as it has
                np.add(
                    node[2 * width : 4 * width : 2], node[2 * width + 1 : 4 * width : 2], out=node[width : 2 * width]
                )
            else:  # repeated parents are written several times with the same sum
                at = at >> 1
                left = at << 1
                node[at] = node.take(left) + node.take(left + 1)

    def sample(self, u_K: F64) -> I64:
        """Slots whose prefix-sum interval holds `u * total`: independent uniform `u` give independent draws.

        Args:    u_K  uniform numbers in [0, 1)
        Returns: [K] slots; a slot of weight 0 is never drawn.
        Raises:  ValueError if the tree holds no weight.
        """
        node = self._node
        if not node[1] > 0.0:
            raise ValueError("SumTree: nothing to draw, the total weight is 0")
        top = min(self._leaves, _HOP)
        cumulative = np.cumsum(node[top : 2 * top])
        # Rounding of u * total must not reach the total itself, or a trailing zero weight would be drawn.
        mass = np.minimum(u_K * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
        child = np.searchsorted(cumulative, mass, side="right")
        mass -= np.where(child > 0, cumulative.take(child - 1, mode="wrap"), 0.0)
        at = child + top
        width = top
        while width < self._leaves:
            width <<= 1
            at <<= 1
            left = node.take(at)
            # A rest left over by rounding must not lead into an empty right half.
            right = (mass >= left) & (node.take(at + 1) > 0.0)
            mass -= np.where(right, left, 0.0)
            at += right
        slots: I64 = at - self._leaves
        return slots
