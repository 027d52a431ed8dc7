"""Figures, one a function: each takes a table and returns the matplotlib axes that it drew on.

Matplotlib is optional: ``pip install 'pyrosplice[plot]'``.
"""

from pyrosplice.plotting.mixture import criterion_curve, mixture_components, patient_distance_map
from pyrosplice.plotting.posterior import (
    convergence_traces,
    effect_forest,
    effect_table,
    rank_histogram,
    rootogram,
    variance_grid,
)
from pyrosplice.plotting.pvalues import pvalue_histogram, qq
from pyrosplice.plotting.recovery import estimate_vs_truth
from pyrosplice.plotting.usage import usage_map, usage_table
from pyrosplice.plotting.volcano import volcano

__all__ = [
    "convergence_traces",
    "criterion_curve",
    "effect_forest",
    "effect_table",
    "estimate_vs_truth",
    "mixture_components",
    "patient_distance_map",
    "pvalue_histogram",
    "qq",
    "rank_histogram",
    "rootogram",
    "usage_map",
    "usage_table",
    "variance_grid",
    "volcano",
]
