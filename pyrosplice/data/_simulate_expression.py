"""Simulated expression: negative-binomial counts of cells, of donors and in groups, with what made them known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyrosplice._expression.size_factors import resolve_size_factors
from pyrosplice._tables.cells import Cells
from pyrosplice._tables.containers import of_shape
from pyrosplice._tables.names import as_text
from pyrosplice.data._simulate import per_gene
from pyrosplice.errors import InvalidArgumentError, check_integer, check_share

Array = NDArray[np.float64]


def simulate_expression(  # noqa: PLR0913 (a documented interface)
    obs: pd.DataFrame,
    *,
    n_genes: int,
    mean: float | ArrayLike = 1.0,
    dispersion: float | ArrayLike = 0.5,
    size_factors: str | ArrayLike | None = None,
    donors: str | ArrayLike | None = None,
    donor_sd: float | ArrayLike = 0.0,
    zeros: float = 0.0,
    seed: int = 0,
) -> AnnData:
    r"""Draw counts of genes in cells that you describe, from the negative-binomial model.

    .. math::
        y_{ig} \sim \operatorname{NB}(\mu_{ig} c_i e^{u_{d(i) g}}, \varphi_g), \quad u_{dg} \sim N(0, \tau_g^2)

    of mean m and variance :math:`m + \varphi m^2`. What a group or a covariate does is in the means: a null gene has
    one for all, a gene that doubles in group b ``np.where(obs["group"] == "b", 2.0, 1.0)[:, None]``.

    Parameters
    ----------
    obs
        What is known of the cells, one row each; it becomes ``obs`` of the result.
    n_genes
        G.
    mean
        μ, means of cells of size 1 and an average donor (``u = 0``): a number, ``(G,)``, ``(N, 1)`` or ``(N, G)``.
    dispersion
        φ, 0 for Poisson counts: a number or ``(G,)`` (here and below also a Series by gene name).
    size_factors
        c: ``(N,)`` or the name of a column of ``obs``; 1 by default.
    donors
        Donor of each cell: labels, or the name of a column of ``obs``.
    donor_sd
        τ, standard deviation between donors of the log mean: a number or ``(G,)``.
    zeros
        Share of counts that are made zero beyond the noise of the model.
    seed
        Seed of everything random. The same seed gives the same data.

    Returns
    -------
    AnnData
        Cells × genes; ``X`` sparse float64; ``var`` the truth: ``mean`` (over the cells, of size 1), ``dispersion``,
        ``donor_sd``.

    Raises
    ------
    InvalidArgumentError
        Means, dispersions or standard deviations that are negative; ``zeros`` outside [0, 1]; a ``donor_sd`` without
        donors; unknown columns, arrays of the wrong shape.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 30), "donor": np.repeat(list("uvwxyz"), 10)})
    >>> simulate_expression(cells, n_genes=5, mean=3.0, donors="donor", donor_sd=0.3).shape
    (60, 5)
    """
    if not isinstance(obs, pd.DataFrame):
        raise InvalidArgumentError(f"obs: expected a DataFrame, one row a cell, found {type(obs).__name__}.")
    check_integer("n_genes", n_genes)
    check_share("zeros", zeros, ends=True)
    cells, names = Cells.of(obs, obs, len(obs)), pd.Index([f"gene_{g + 1}" for g in range(n_genes)])
    truth = pd.DataFrame(
        {
            "dispersion": per_gene("dispersion", dispersion, names, (0.0, np.inf)),
            "donor_sd": per_gene("donor_sd", donor_sd, names, (0.0, np.inf)),
        },
        index=names,
    )
    means = _means(mean, (len(obs), n_genes))
    truth.insert(0, "mean", means.mean(0))
    sizes = resolve_size_factors(size_factors, cells)
    rng = np.random.default_rng(check_integer("seed", seed, least=0))
    rate = means if sizes is None else means * sizes[:, None]
    rate = rate * _donor_factors(cells, donors, truth["donor_sd"].to_numpy(), rng)
    counts = rng.poisson(rate * _noise(truth["dispersion"].to_numpy(), rate.shape, rng)).astype(np.float64)
    if zeros:
        counts *= rng.random(counts.shape) >= zeros
    return AnnData(sp.csr_matrix(counts), obs=obs.set_axis(as_text(obs.index), axis=0), var=truth)


def _means(mean: object, shape: tuple[int, int]) -> Array:
    value = of_shape("mean", mean, ((), shape[1:], (shape[0], 1), shape))
    if not ((value >= 0) & np.isfinite(value)).all():
        raise InvalidArgumentError("mean: expected finite numbers of at least 0.")
    return np.broadcast_to(value, shape)


def _donor_factors(cells: Cells, donors: object, sd: Array, rng: np.random.Generator) -> Array:
    """Factor ``exp(u)`` of every cell and gene ``(N, G)``, or ``(1, 1)`` without donors."""
    if donors is None:
        if sd.any():
            raise InvalidArgumentError("donor_sd: expected 0 without donors; say whose cells they are in donors=.")
        return np.ones((1, 1))
    labels = cells.levels(donors, "donors")
    return np.exp(sd * rng.standard_normal((len(labels.levels), len(sd))))[labels.codes]


def _noise(dispersion: Array, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """What makes a Poisson count negative binomial: gamma factors of mean 1 and variance φ."""
    some = np.where(dispersion > 0, dispersion, 1.0)
    return np.where(dispersion > 0, rng.gamma(1 / some, some, shape), 1.0)
