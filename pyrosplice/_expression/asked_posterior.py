"""The posterior of expression as a method: of fits with random effects and without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import xarray as xr

from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.mixed.drawn_effects import mixed_posterior
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.posterior import ExpressionDrawOptions, expression_posterior
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.priors._named import Priors


class HasEstimator(Protocol):
    """A fitted model of expression with its data."""

    def _data(self) -> Estimator: ...

    def _has_effects(self) -> bool: ...

    def _mixed_estimator(self) -> MixedEstimator: ...


def draw_from_posterior(  # noqa: PLR0913 (a documented interface)
    self: HasEstimator,
    *,
    num_samples: int = 1000,
    method: str = "laplace",
    hyper: str | None = None,
    priors: Priors = None,
    genes: str | Sequence[str | int] | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    nuts_options: NutsOptions | None = None,
    max_memory: str | float | None = None,
    num_chains: int | None = None,
    over_memory: str = "refuse",
    quiet: bool = False,
) -> xr.DataTree:
    """Draw from the posterior: an ``xarray.DataTree`` with the groups that ArviZ reads, as of the isoform models.

    The mode is found again under the priors; the estimates of :meth:`fit` stay as they are. Variables of the
    posterior: ``location`` and ``scale``, all coefficients (natural log units); ``log2_effect``; ``dispersion``,
    the gene's hyper-parameter, if any. Dimensions: ``gene``, ``cell``, ``coefficient``, ``scale_coefficient``.

    With random effects there is no ``scale``, and of each effect, say ``"1 | donor"``, there are its levels
    (``"1 | donor"``, dimensions ``"1 | donor: level"`` and ``"1 | donor: column"``), their standard deviations
    (``"1 | donor: sd"``) and, where it has any, correlations (``"1 | donor: correlation"``); of effects of cells
    ``space`` and ``noise``, one a cell, and ``"space: sd"``, ``"noise: sd"``. Densities and predicted counts are
    given the effects. Coefficients have a flat prior but for NUTS.

    Parameters
    ----------
    num_samples
        Draws a gene: of ``"laplace"`` and ``"importance"`` in all, of NUTS in each chain (four at least).
    method
        ``"laplace"``: a Gaussian of location and scale, or of location and effects, together at the mode.
        ``"importance"``: these draws, resampled by their Pareto-smoothed weights. ``"nuts"``: the same Pyro model,
        gene by gene; with random effects for up to 1,000 coefficients, levels and cells' effects of a gene.
    hyper
        Of fits with random effects. ``"plug-in"`` (the default): standard deviations and dispersion at their
        estimates, restricted maximum likelihood or its maximum times the priors' densities. ``"integrate"``: they are
        drawn too, from their Laplace posterior (NUTS always does); it takes a proper prior of each of them, and a
        search for the mode for each of four proposals a draw (1.5 ms each with 10,000 cells of 40 donors and a slope).
    priors
        Pyro distributions of each free coefficient: ``location`` and ``scale``;
        :func:`pyrosplice._expression.posterior.weak_priors` for those not given, and for ``"weak"``. With random
        effects by site of :class:`pyrosplice.glmm.CountGLMM`, the same for every gene: ``"1 | donor: sd(1)"``,
        ``"space_sd"``, ``"noise_sd"``, ``"dispersion"``; ``"beta"`` for NUTS. Flat for those not given.
    genes
        Names or positions of the genes to draw from; all by default.
    groups
        Optional groups to make (:mod:`pyrosplice.posterior._tree`); all by default, those of the prior where all
        priors are proper. Those with an entry a cell are large: draws × genes × cells.
    seed, nuts_options
        The seed of all that is random; options of ``method="nuts"``.
    max_memory
        What the draws may take, as ``"4 GB"`` or bytes (half of the memory that is free by default); logged before.
    num_chains, over_memory, quiet
        Chains (four by default), whether too many draws are refused or thinned, and no bar of progress: as of
        :meth:`pyrosplice.MultinomGLM.posterior`.

    Raises
    ------
    InvalidArgumentError
        More memory needed than allowed; options that do not exist; observation weights; a gene whose posterior has
        no Gaussian curvature; flat priors of what is integrated over, or a prior of coefficients that are.
    NotReadyError
        Before ``fit``, or of a loaded model.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
    >>> glm = ExpressionGLM("~ group").fit(simulate_expression(cells, n_genes=3, mean=3.0, seed=0))
    >>> tree = glm.posterior(num_samples=200, priors="weak", seed=0)
    >>> dict(tree["posterior"]["location"].sizes)
    {'chain': 4, 'draw': 50, 'gene': 3, 'coefficient': 2}
    """
    draws: dict[str, Any] = {"num_samples": num_samples, "method": method, "priors": priors, "seed": seed}
    kept: dict[str, Any] = {"genes": genes, "groups": groups, "hyper": hyper}
    limits: dict[str, Any] = {"max_memory": max_memory, "over_memory": over_memory, "quiet": quiet}
    asked = ExpressionDrawOptions(**draws, **kept, **limits, nuts_options=nuts_options, num_chains=num_chains)
    if self._has_effects():
        return mixed_posterior(self._mixed_estimator(), asked)
    return expression_posterior(self._data(), asked)
