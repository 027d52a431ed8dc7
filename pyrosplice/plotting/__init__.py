"""Figures, one a function: each takes a table and returns the matplotlib axes that it drew on.

Matplotlib is optional: ``pip install 'pyrosplice[plot]'``.
"""

from pyrosplice.plotting._calibration import rank_ecdf
from pyrosplice.plotting._expression import dispersion, heatmap
from pyrosplice.plotting._mixture import criterion_curve, mixture_components, patient_distance_map
from pyrosplice.plotting._posterior import (
    convergence_traces,
    effect_forest,
    effect_table,
    predictive_intervals,
    rank_histogram,
    rootogram,
    variance_grid,
)
from pyrosplice.plotting._pvalues import pvalue_histogram, qq
from pyrosplice.plotting._recovery import estimate_vs_truth
from pyrosplice.plotting._tissue import TissueImage, tissue_image
from pyrosplice.plotting._usage import posterior_usage_table, usage_table
from pyrosplice.plotting._usage_map import usage_map
from pyrosplice.plotting._volcano import ma, volcano

__all__ = [
    "TissueImage",
    "convergence_traces",
    "criterion_curve",
    "dispersion",
    "effect_forest",
    "effect_table",
    "estimate_vs_truth",
    "heatmap",
    "ma",
    "mixture_components",
    "patient_distance_map",
    "posterior_usage_table",
    "predictive_intervals",
    "pvalue_histogram",
    "qq",
    "rank_ecdf",
    "rank_histogram",
    "rootogram",
    "tissue_image",
    "usage_map",
    "usage_table",
    "variance_grid",
    "volcano",
]
