"""Posterior draws and what they say about the model, as an xarray DataTree that ArviZ reads."""

from pyrosplice.posterior._comparison import compare_posteriors
from pyrosplice.posterior._diagnostics import convergence_table, leave_one_out, predictive_check
from pyrosplice.posterior._genes import one_gene
from pyrosplice.posterior._grid import grid_table
from pyrosplice.posterior._laplace_check import laplace_check, laplace_shifts
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.posterior._sensitivity import prior_sensitivity

__all__ = [
    "NutsOptions",
    "compare_posteriors",
    "convergence_table",
    "grid_table",
    "laplace_check",
    "laplace_shifts",
    "leave_one_out",
    "one_gene",
    "predictive_check",
    "prior_sensitivity",
]
