"""Real counts to load, simulators, and what reads an AnnData: layers, isoform groups, designs, sums."""

from pyrosplice._usage.reading.design import Design, build_design
from pyrosplice._usage.reading.isoforms import IsoformData, read_isoforms
from pyrosplice._usage.reading.summary import feature_summary
from pyrosplice.data._junctions import from_junctions
from pyrosplice.data._patterns import spatial_patterns
from pyrosplice.data._pseudobulk import pseudobulk
from pyrosplice.data._real_sets import (
    available_sets,
    load_allele_counts,
    load_breast_sections,
    load_bulb_families,
    load_glioblastoma,
    load_lung_junctions,
)
from pyrosplice.data._simulate import simulate_isoforms
from pyrosplice.data._simulate_expression import simulate_expression
from pyrosplice.data._spatialdata import from_spatialdata
from pyrosplice.data._usage_counts import simulate_counts
from pyrosplice.data._usage_totals import simulate_totals
from pyrosplice.data._visium import from_visium

__all__ = [
    "Design",
    "IsoformData",
    "available_sets",
    "build_design",
    "feature_summary",
    "from_junctions",
    "from_spatialdata",
    "from_visium",
    "load_allele_counts",
    "load_breast_sections",
    "load_bulb_families",
    "load_glioblastoma",
    "load_lung_junctions",
    "pseudobulk",
    "read_isoforms",
    "simulate_counts",
    "simulate_expression",
    "simulate_isoforms",
    "simulate_totals",
    "spatial_patterns",
]
