"""AnnData and arrays in: layers, isoform groups, designs; simulators."""

from pyrosplice.data.patterns import spatial_patterns
from pyrosplice.data.simulate import simulate_isoforms
from pyrosplice.data.simulate_expression import simulate_expression
from pyrosplice.data.usage_counts import simulate_counts
from pyrosplice.data.usage_totals import simulate_totals
from pyrosplice.usage.reading.design import Design, build_design
from pyrosplice.usage.reading.isoforms import IsoformData, read_isoforms
from pyrosplice.usage.reading.summary import feature_summary

__all__ = [
    "Design",
    "IsoformData",
    "build_design",
    "feature_summary",
    "read_isoforms",
    "simulate_counts",
    "simulate_expression",
    "simulate_isoforms",
    "simulate_totals",
    "spatial_patterns",
]
