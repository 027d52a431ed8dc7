"""AnnData and arrays in: layers, isoform groups, designs; the simulator."""

from pyrosplice.data.design import Design, build_design
from pyrosplice.data.isoforms import IsoformData, read_isoforms
from pyrosplice.data.simulate import simulate_isoforms
from pyrosplice.data.summary import feature_summary
from pyrosplice.data.usage_counts import simulate_counts

__all__ = [
    "Design",
    "IsoformData",
    "build_design",
    "feature_summary",
    "read_isoforms",
    "simulate_counts",
    "simulate_isoforms",
]
