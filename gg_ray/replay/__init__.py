"""Replay: what the learner draws from. table holds, selectors choose, limiter paces, segments store.

Flow:    scenario.gates -> limiter -> table (sumtree, selectors) -> learner; segments <-> checkpoint
"""

from gg_ray.replay.limiter import LimiterError, SampleToInsertLimiter, StalenessManager
from gg_ray.replay.segments import ColumnStore, ObjectStore, SegmentError, experience_store, read_segment, write_segment
from gg_ray.replay.selectors import Fifo, Lifo, Prioritized, Rank, Selector, Stratified, Uniform
from gg_ray.replay.sumtree import SumTree
from gg_ray.replay.table import ItemMeta, ReplayError, ReplayTable, Sample, describe_experiences

__all__ = [
    "ColumnStore",
    "Fifo",
    "ItemMeta",
    "Lifo",
    "LimiterError",
    "ObjectStore",
    "Prioritized",
    "Rank",
    "ReplayError",
    "ReplayTable",
    "Sample",
    "SampleToInsertLimiter",
    "SegmentError",
    "Selector",
    "StalenessManager",
    "Stratified",
    "SumTree",
    "Uniform",
    "describe_experiences",
    "experience_store",
    "read_segment",
    "write_segment",
]
