"""Usage, expected counts or predictors at spots and covariates of one's choice, with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._linalg.blocks import nan_where_indefinite
from pyrosplice._tables.columns import numbers, one_column
from pyrosplice._tables.containers import as_dense
from pyrosplice._usage.analysis.fits import TEST_BATCH, Analyzed, UsageAnalysis, batches_alike
from pyrosplice._usage.analysis.listed_prediction import listed_moments
from pyrosplice._usage.analysis.options import check_of_isoforms
from pyrosplice._usage.analysis.places import AskedSpots, asked_spots
from pyrosplice._usage.analysis.posterior_draws import gene_positions, usage_problem
from pyrosplice._usage.fitted_gene import stacked
from pyrosplice.errors import InvalidArgumentError, check_integer, check_option, check_share, is_number
from pyrosplice.glmm._bound_effects import NEW_LEVELS
from pyrosplice.glmm._link_posterior import LinkPosterior, Places
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.posterior._genes import NAMES
from pyrosplice.posterior._problem import PosteriorProblem, link_posterior
from pyrosplice.reasons import Reason

Scale = Literal["usage", "mean", "link"]
# Points of each spot's Gaussian that usage is averaged over: means to 1e-4, ends of intervals to .003 of their width
# (tests/usage/test_prediction.py).
N_POINTS = 512
AT_ONCE = 2**21  # numbers of a chunk of spots at these points


def predict(  # noqa: PLR0913 (options of a table, all by keyword)
    self: Analyzed,
    adata_new: object = None,
    *,
    what: Scale = "usage",
    draws: int = 0,
    genes: str | Sequence[str] | None = None,
    design_mtx: object = None,
    totals: object = None,
    level: float = 0.9,
    seed: int = 0,
    new_levels: str = "population",
) -> pd.DataFrame | xr.DataArray:
    r"""Predict usage at new spots and covariates, or at the fitted ones, with what is not known of it.

    From Laplace's posterior at the estimates of σ, θ and the likelihood's own hyper-parameters, the uncertainty of
    coefficients and random effects included, their own not. At a fitted spot the random effect is that spot's; at a
    new one

    .. math:: \eta_* = x_*'\Gamma + \sigma (\sqrt\theta\, s_* + \sqrt{1 - \theta}\, e_*)

    with an i.i.d. effect e_* of its own, and the field s_* of the graph over old and new spots together, given that at
    the old ones, whose joint law stays the fitted one (:mod:`pyrosplice.spatial._new_spots`). So spots inside of a
    hole are less certain than those beside fitted ones, and a prediction depends a little on which spots are asked
    about with it. Where no path over neighbors leads to a fitted spot (a section that was not fitted, or farther than
    the longest edge of the fitted graph from everything) the field is the prior's, and ``reason`` says
    ``"no_neighbors"``.

    Intervals of 90 % cover the usage that was simulated in .87 to .91 of new spots alone, .87 to .90 of those in a hole
    and .87 to .89 of fitted ones at 6 and 20 molecules a spot; at 2 molecules in .81, .80 and .82, because Laplace's
    estimate of σ is then too small and its uncertainty is not in them (tests/usage/test_prediction.py).

    Parameters
    ----------
    adata_new
        The spots: an AnnData with coordinates in ``obsm`` and covariates and sections in ``obs`` under the names that
        ``setup_data`` was given; or coordinates alone ``(n, D)`` for fits without covariates and sections. Counts are
        not read. A spot at the position of a fitted one (in its section) is that spot. None: the fitted spots. Models
        without space take every spot of an AnnData for a new one.
    what
        ``"usage"`` of each isoform; ``"mean"``, expected counts; ``"link"``, the linear predictors, logits of the
        isoforms against the last one.
    draws
        So many joint draws of all spots instead of a table.
    genes
        Name(s) of genes; all by default.
    design_mtx
        The covariates ``(n, P)`` themselves, a table's by ``covariate_names``, where they are not made of ``obs``.
    totals
        Counts of a gene per spot that ``what="mean"`` is of: a number, one a spot ``(n,)``, or a table with a column a
        gene. Those that were observed by default at the fitted spots. Not for likelihoods of random totals.
    level
        Probability inside of ``lower`` and ``upper``.
    seed
        Of the draws.
    new_levels
        With random effects of groups, groups that the fit never saw: ``"population"``, any such group; ``"raise"``.
        The table is that of the fitted group at the others, its uncertainty included. A spot at the position of a
        fitted one has to have its covariates and groups, where spots have effects of their own.

    Returns
    -------
    pandas.DataFrame or xarray.DataArray
        A row a gene, spot and isoform: ``gene``, ``spot``, ``isoform``, ``mean`` and ``sd`` of the posterior, ``lower``
        and ``upper`` (equal tails), ``reason``: "", why the gene's fit is none to rely on, or ``"no_neighbors"``. The
        link's means at the fitted spots are the fitted predictors; the mean of the usage is not quite the usage at
        these, since it is averaged. With ``draws``: ``(draw, gene, spot, isoform)``, padded with NaN where genes have
        fewer isoforms, whose names are ``isoform_name`` ``(gene, isoform)``.

    Raises
    ------
    KeyError
        A name that is not in ``gene_names``.
    InvalidArgumentError
        A joint fit; coordinates, sections or covariates that are missing or, of covariates, have levels that the fit
        never saw; new spots where graph or covariance were given themselves, or ρ was estimated; ``totals`` missing or
        of another shape; ``draws`` beside effects of groups.
    NotReadyError
        Before ``setup_data`` or ``fit``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> adata = simulate_isoforms(n_spots=100, n_genes=2, sigma=2.0, seed=0)
    >>> model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> model.setup_data(adata[:80])
    >>> model.fit(print_progress=False)
    >>> table = model.predict(adata[80:], genes="gene_1")
    >>> table.shape, list(table.columns)
    ((60, 8), ['gene', 'spot', 'isoform', 'mean', 'sd', 'lower', 'upper', 'reason'])
    """
    analysis = self.analysis
    analysis.shipped_only("predict")
    check_option("what", what, get_args(Scale))
    check_share("level", level)
    check_integer("draws", draws, least=0)
    check_integer("seed", seed, least=0)
    check_option("new_levels", new_levels, NEW_LEVELS)
    if draws:
        analysis.without_groups("draws", "Leave draws out for a table, or use posterior() at the fitted spots.")
    if what == "usage":
        check_of_isoforms(analysis.options.likelihood, "usage is of shares of isoforms; ask for what='mean'")
    positions, spots = gene_positions(analysis, genes), asked_spots(analysis, adata_new, design_mtx)
    scale = PredictedScale(what, level, _totals(analysis, positions, spots, totals, what, fitted=adata_new is None))
    if draws:
        return _draws(analysis, positions, spots, scale, n_draws=draws, seed=seed)
    if analysis.prepared.listed is None:
        found = ((own, *_moments(analysis, own, spots)) for own in _batches(analysis, positions))
    else:
        batches = batches_alike(
            analysis, analysis.grouped_spec(with_design=analysis.fit.with_design), analysis.fit.genes
        )
        wanted = [own for batch in batches if (own := [gene for gene in batch if gene in positions])]
        found = ((own, *listed_moments(analysis, own, spots, adata_new, new_levels)) for own in wanted)
    tables: dict[int, pd.DataFrame] = {}
    for own, mean, covariance in found:
        tables |= _tables(analysis, own, spots, scale, (mean, covariance))
    return pd.concat([tables[gene] for gene in positions], ignore_index=True)


@dataclass(frozen=True)
class PredictedScale:
    """What is predicted: ``what``, the ``level`` of its intervals, and for expected counts the ``totals`` by gene."""

    what: str
    level: float
    totals: dict[int, Tensor]

    def of(self, eta: Tensor, likelihood: Likelihood, genes: Sequence[int]) -> Tensor:
        """Values ``(..., B, n, K)`` at predictors ``(..., B, n, Q)``."""
        if self.what == "link":
            return eta
        expected = likelihood.expected(eta)
        if self.what == "usage" or not self.totals:
            return expected
        return expected * torch.stack([self.totals[gene] for gene in genes]).unsqueeze(-1)


def _batches(analysis: UsageAnalysis, positions: Sequence[int]) -> list[list[int]]:
    """The genes asked for, those with the same number of isoforms together."""
    batches = analysis.prepared.batches(TEST_BATCH, group=True)
    return [own for batch in batches if (own := [gene for gene in batch if gene in positions])]


def _posterior(
    analysis: UsageAnalysis, genes: Sequence[int], spots: AskedSpots
) -> tuple[PosteriorProblem, LinkPosterior, Places]:
    problem = usage_problem(analysis, genes)
    rows = torch.cat([spots.covariates, torch.ones(len(spots.names), 1, dtype=torch.float64)], 1)
    return problem, link_posterior(problem), Places(rows @ problem.engine.scaling.matrix, spots.fitted, spots.field)


def _moments(analysis: UsageAnalysis, genes: Sequence[int], spots: AskedSpots) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the logits of genes of a batch."""
    _, posterior, places = _posterior(analysis, genes, spots)
    mean, covariance, basis = posterior.mean(places), posterior.covariance(places), posterior.model.basis
    return (mean, covariance) if basis is None else (basis.logits(mean), basis.logit_covariance(covariance))


def _tables(
    analysis: UsageAnalysis,
    genes: Sequence[int],
    spots: AskedSpots,
    scale: PredictedScale,
    moments: tuple[Tensor, Tensor],
) -> dict[int, pd.DataFrame]:
    """Table of each gene of a batch, from the moments of its logits."""
    mean, covariance = moments
    fitted, likelihood = stacked([analysis.fit.genes[gene] for gene in genes]), analysis.options.likelihood
    likelihood = likelihood.bind({name: fitted[name] for name in likelihood.free})
    if scale.what == "link":
        sd = torch.diagonal(covariance, dim1=-2, dim2=-1).sqrt()
        reach = float(torch.special.ndtri(torch.tensor((1 + scale.level) / 2, dtype=torch.float64)))
        found = [mean, sd, mean - reach * sd, mean + reach * sd]
    else:
        found = _summaries(mean, covariance, likelihood, genes, scale)
    out = {}
    for row, gene in enumerate(genes):
        fit, names = analysis.fit.genes[gene], _category_names(analysis, gene, found[0].shape[-1], scale.what)
        labels = [[analysis.prepared.gene_names[gene]], spots.names, names]
        table = pd.MultiIndex.from_product(labels, names=["gene", "spot", "isoform"]).to_frame(index=False)
        for name, values in zip(("mean", "sd", "lower", "upper"), found, strict=True):
            table[name] = values[row].flatten().numpy()
        reason = np.where(spots.unjoined, Reason.NO_NEIGHBORS.value, "").astype(object)
        if fit.reason != Reason.CONVERGED:
            reason[:] = fit.reason.value
        out[gene] = table.assign(reason=np.repeat(reason, len(names)))
    return out


def _summaries(
    mean: Tensor, covariance: Tensor, likelihood: Likelihood, genes: Sequence[int], scale: PredictedScale
) -> list[Tensor]:
    """Mean, sd and ends of the interval ``(B, n, K)`` of what is a function of Gaussian predictors, spot by spot."""
    n_genes, n_spots, q = mean.shape
    uniform = torch.quasirandom.SobolEngine(q, scramble=True, seed=0).draw(N_POINTS, dtype=torch.float64)
    points = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
    tail = round((1 - scale.level) / 2 * (N_POINTS - 1))
    root = nan_where_indefinite(covariance + 1e-14 * torch.eye(q, dtype=mean.dtype))
    parts = []
    for some in torch.arange(n_spots).split(max(AT_ONCE // (N_POINTS * n_genes * (q + 1)), 1)):
        eta = mean[:, some] + torch.einsum("bnqr,sr->sbnq", root[:, some], points)
        part = PredictedScale(scale.what, scale.level, {gene: value[some] for gene, value in scale.totals.items()})
        values = part.of(eta, likelihood, genes)
        ordered = values.sort(0).values
        parts.append([values.mean(0), values.std(0), ordered[tail], ordered[N_POINTS - 1 - tail]])
    return [torch.cat(columns, 1) for columns in zip(*parts, strict=True)]


def _draws(
    analysis: UsageAnalysis,
    positions: Sequence[int],
    spots: AskedSpots,
    scale: PredictedScale,
    *,
    n_draws: int,
    seed: int,
) -> xr.DataArray:
    """Draws of genes, ``(draw, gene, spot, isoform)``, those of fewer isoforms padded."""
    generator, found, names = torch.Generator().manual_seed(seed), dict[int, Tensor](), dict[int, list[str]]()
    for genes in _batches(analysis, positions):
        problem, posterior, places = _posterior(analysis, genes, spots)
        basis, likelihood = posterior.model.basis, _bound(problem)
        drawn = [
            scale.of(eta if basis is None else basis.logits(eta), likelihood, genes)
            for eta in posterior.draws(places, n_draws, generator)
        ]
        for row, gene in enumerate(genes):
            found[gene] = torch.stack([one[row] for one in drawn])
            names[gene] = _category_names(analysis, gene, found[gene].shape[-1], scale.what)
    width = max(value.shape[-1] for value in found.values())
    values = np.full((n_draws, len(positions), len(spots.names), width), np.nan)
    for place, gene in enumerate(positions):
        values[:, place, :, : found[gene].shape[-1]] = found[gene].numpy()
    padded = np.array([[*names[gene], *[""] * (width - len(names[gene]))] for gene in positions])
    gene_names = [analysis.prepared.gene_names[gene] for gene in positions]
    coords: dict[str, Any] = {"gene": gene_names, "spot": spots.names, NAMES: (("gene", "isoform"), padded)}
    return xr.DataArray(values, coords, ("draw", "gene", "spot", "isoform"), name=scale.what)


def _bound(problem: PosteriorProblem) -> Likelihood:
    return problem.likelihood.bind({name: problem.estimates[name] for name in problem.likelihood.free})


def _category_names(analysis: UsageAnalysis, gene: int, n_values: int, what: str) -> list[str]:
    """Names of the isoforms; of the predictors those that they are of, as far as there are as many."""
    names = analysis.prepared.isoform_names(gene)
    return names[:n_values] if what == "link" else names


def _totals(
    analysis: UsageAnalysis, genes: Sequence[int], spots: AskedSpots, totals: object, what: str, *, fitted: bool
) -> dict[int, Tensor]:
    """Totals ``(n,)`` by gene that expected counts are of; none where they are not asked for, or random."""
    given_totals = analysis.options.likelihood.conditional
    if what != "mean" or not given_totals:
        if totals is not None:
            raise InvalidArgumentError(
                f"totals: expected None, {'the likelihood has random totals' if what == 'mean' else f'{what=}'}."
            )
        return {}
    n_spots = len(spots.names)
    if totals is None and fitted:
        return {gene: analysis.prepared.counts[gene].sum(-1) for gene in genes}
    if totals is None:
        raise InvalidArgumentError("totals: what='mean' of new spots needs the counts of the genes that it is of.")
    if isinstance(totals, pd.DataFrame):
        names = analysis.prepared.gene_names
        columns = {g: numbers(one_column(totals, names[g], "totals"), names[g], "totals") for g in genes}
    else:
        shared = np.full(n_spots, float(totals)) if is_number(totals) else as_dense(totals, "totals")
        columns = dict.fromkeys(genes, shared)
    for column in columns.values():
        _check_totals(column, n_spots)
    return {gene: torch.from_numpy(np.array(column, dtype=np.float64)) for gene, column in columns.items()}


def _check_totals(totals: NDArray[np.float64], n_spots: int) -> None:
    if totals.shape != (n_spots,) or not (np.isfinite(totals).all() and (totals >= 0).all()):
        raise InvalidArgumentError(f"totals: expected {n_spots} numbers ≥ 0, one a spot, found shape {totals.shape}.")
