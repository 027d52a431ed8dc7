"""Posterior draws and what they say about the model, as an xarray DataTree that ArviZ reads."""

from pyrosplice.posterior.comparison import compare_posteriors
from pyrosplice.posterior.diagnostics import convergence_table, leave_one_out, predictive_check
from pyrosplice.posterior.genes import one_gene
from pyrosplice.posterior.grid import grid_table
from pyrosplice.posterior.laplace_check import laplace_check, laplace_shifts
from pyrosplice.posterior.nuts import NutsOptions
from pyrosplice.posterior.sensitivity import prior_sensitivity

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
