"""AnnData and arrays in: layers, isoform groups, designs; simulators."""

from pyrosplice.data.design import Design, build_design
from pyrosplice.data.isoforms import IsoformData, read_isoforms
from pyrosplice.data.patterns import spatial_patterns
from pyrosplice.data.simulate import simulate_isoforms
from pyrosplice.data.simulate_expression import simulate_expression
from pyrosplice.data.summary import feature_summary
from pyrosplice.data.usage_counts import simulate_counts
from pyrosplice.data.usage_totals import simulate_totals

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
