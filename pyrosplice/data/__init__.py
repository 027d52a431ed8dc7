"""Simulators of tissue and of expression, and what reads an AnnData: layers, isoform groups, designs, sums."""

from pyrosplice._usage.reading.design import Design, build_design
from pyrosplice._usage.reading.isoforms import IsoformData, read_isoforms
from pyrosplice._usage.reading.summary import feature_summary
from pyrosplice.data._patterns import spatial_patterns
from pyrosplice.data._pseudobulk import pseudobulk
from pyrosplice.data._simulate import simulate_isoforms
from pyrosplice.data._simulate_expression import simulate_expression
from pyrosplice.data._usage_counts import simulate_counts
from pyrosplice.data._usage_totals import simulate_totals

__all__ = [
    "Design",
    "IsoformData",
    "build_design",
    "feature_summary",
    "pseudobulk",
    "read_isoforms",
    "simulate_counts",
    "simulate_expression",
    "simulate_isoforms",
    "simulate_totals",
    "spatial_patterns",
]
