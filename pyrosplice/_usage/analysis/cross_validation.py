"""How well a model predicts the counts of spots, or of blocks of spots, from all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._tables.columns import one_column
from pyrosplice._tables.labels import Labels, read_labels
from pyrosplice._tables.names import by_name
from pyrosplice._usage.analysis.fits import TEST_BATCH, Analyzed, UsageAnalysis
from pyrosplice._usage.analysis.posterior_draws import gene_positions, usage_problem
from pyrosplice.errors import InvalidArgumentError, check_integer, check_option, check_switches
from pyrosplice.glmm._group_cross_validation import group_densities
from pyrosplice.posterior._problem import link_posterior
from pyrosplice.reasons import Reason
from pyrosplice.spatial._spatial_blocks import spatial_blocks

Method = Literal["laplace", "corrected", "refit"]


def cross_validate(  # noqa: PLR0913 (options of a table, all by keyword)
    self: Analyzed,
    groups: object = "spot",
    *,
    genes: str | Sequence[str] | None = None,
    method: Method = "laplace",
    n_blocks: int = 10,
    pointwise: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Score how well each gene's counts at spots left out are predicted: ``log p(y_I | y_-I)`` of every group I.

    The spots stay in the graph, their counts are taken out. To compare models (with and without a covariate, with and
    without space), take the difference of their log densities group by group (``pointwise=True``): the model whose sum
    is higher predicts better, and the standard error of that sum is :math:`\sqrt M` times the sd of the differences.

    Parameters
    ----------
    groups
        ``"spot"``: each by itself. ``"block"``: blocks of neighboring spots, within sections, which asks for
        prediction over a distance. Or labels: a column of ``obs``, or N of them.
    genes
        Name(s) of genes; all by default.
    method
        ``"laplace"`` (default): all groups from the one fit, by taking their likelihood out of its Gaussian; σ, θ and
        the likelihood's own hyper-parameters stay those of all counts, and so does the curvature of the other spots'
        likelihood. Within .03 nats a spot of refits for spots, .04 for blocks (three genes, 100 spots, five molecules
        a spot), all of it of σ and θ. ``"corrected"``: mode and coefficients found again without each group, the
        hyper-parameters held; as many factorisations as groups. ``"refit"``: everything found again, which is what the
        others approximate. The last two are for likelihoods with given totals.
    n_blocks
        Number of blocks, for ``"block"``.
    pointwise
        A row a gene and group instead of a gene.
    seed
        Of the draws that the counts of groups of more than three logits are integrated with.

    Returns
    -------
    pandas.DataFrame
        ``gene``; ``elpd``, the sum over groups, nats; ``se``, its standard error; ``n_groups`` and ``n_spots`` that
        have counts of the gene (all, for random totals); ``elpd_per_spot``; ``reason``: "" or why the fit is none to
        rely on. With ``pointwise``: ``gene``, ``group`` (name of the spot, number of the block, or label), ``n_spots``,
        ``log_density`` (of all of the group's counts together).

    Raises
    ------
    KeyError
        A name that is not in ``gene_names``.
    InvalidArgumentError
        A joint fit; another ``method``; labels that are missing or not one a spot; blocks without positions; one group
        only; a refit for a likelihood of random totals.
    NotReadyError
        Before ``setup_data`` or ``fit``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> model.setup_data(simulate_isoforms(n_spots=100, n_genes=2, seed=0))
    >>> model.fit(print_progress=False)
    >>> model.cross_validate("block", n_blocks=5).columns.tolist()
    ['gene', 'elpd', 'se', 'n_groups', 'n_spots', 'elpd_per_spot', 'reason']
    """
    analysis = self.analysis
    analysis.shipped_only("cross_validate")
    analysis.without_groups("cross_validate")
    check_option("method", method, get_args(Method))
    check_integer("n_blocks", n_blocks, least=2)
    check_integer("seed", seed, least=0)
    check_switches(pointwise=pointwise)
    if method != "laplace" and not analysis.options.likelihood.conditional:
        raise InvalidArgumentError(
            f"method={method!r}: a spot without counts informs about {analysis.options.likelihood!r}; expected "
            "'laplace'."
        )
    positions, left_out = gene_positions(analysis, genes), _groups(analysis, groups, n_blocks)
    rows: dict[int, pd.DataFrame] = {}
    for batch in analysis.prepared.batches(TEST_BATCH, group=True):
        own = [gene for gene in batch if gene in positions]
        if own:
            density = _densities(analysis, own, left_out, method, seed)
            rows |= {gene: _rows(analysis, gene, left_out, density[row]) for row, gene in enumerate(own)}
    tables = [rows[gene] for gene in positions]
    if pointwise:
        return pd.concat(tables, ignore_index=True)
    return pd.DataFrame([_total(analysis, gene, rows[gene]) for gene in positions])


@dataclass(frozen=True)
class LeftOut:
    """Groups of spots: ``names`` of M groups and the positions of each one's ``spots``."""

    names: Sequence[Any]
    spots: list[Tensor]


def _groups(analysis: UsageAnalysis, given: object, n_blocks: int) -> LeftOut:
    """Read which spots are left out together."""
    prepared, obs = analysis.prepared, analysis.prepared.data.adata.obs
    if isinstance(given, str) and given == "spot" and given not in obs:
        return LeftOut(list(obs.index), [torch.tensor([spot]) for spot in range(len(obs))])
    if isinstance(given, str) and given == "block" and given not in obs:
        coords = prepared.coordinates
        if coords is None:
            raise InvalidArgumentError(
                "groups='block': this model was fitted without positions of the spots; give a label of each spot."
            )
        key = prepared.section_key
        codes = np.zeros(len(obs), np.intp) if key is None else read_labels(one_column(obs, key, key), key).codes
        blocks = spatial_blocks(coords, codes, n_blocks)
        return _of_labels(blocks, list(range(blocks.max() + 1)))
    if isinstance(given, str):
        labels = read_labels(one_column(obs, given, "groups"), f"groups: column {given!r}")
    else:
        labels = _given_labels(given, obs)
    if len(labels.levels) < 2:
        raise InvalidArgumentError(f"groups: expected two groups or more, found {len(labels.levels)}.")
    return _of_labels(labels.codes, labels.levels)


def _given_labels(given: object, obs: pd.DataFrame) -> Labels:
    if not isinstance(given, pd.Series | pd.Index | np.ndarray | list | tuple | Tensor | pd.Categorical):
        raise InvalidArgumentError(
            f"groups: expected 'spot', 'block', a column of obs or {len(obs)} labels, found {type(given).__name__}."
        )
    labels = read_labels(by_name(given, obs.index, "groups", what="spot"), "groups")
    if len(labels.codes) != len(obs):
        raise InvalidArgumentError(f"groups: expected {len(obs)} labels, one a spot, found {len(labels.codes)}.")
    return labels


def _of_labels(codes: NDArray[np.intp], names: Sequence[Any]) -> LeftOut:
    return LeftOut(names, [torch.from_numpy(np.flatnonzero(codes == code)) for code in range(len(names))])


def _densities(analysis: UsageAnalysis, genes: list[int], left_out: LeftOut, method: str, seed: int) -> Tensor:
    """Log density of each group's counts, (B, M)."""
    if method == "laplace":
        return group_densities(link_posterior(usage_problem(analysis, genes)), left_out.spots, seed=seed)
    counts, fit, columns = analysis.counts(genes), analysis.fit, []
    spec = analysis.spec(analysis.model_type, with_design=fit.with_design)
    for spots in left_out.spots:
        others = counts.clone()
        others[:, spots] = 0.0
        found = spec.fit(others) if method == "refit" else [fit.genes[gene] for gene in genes]
        problem = spec.rebuild_estimable(others, found).posterior_problem()
        posterior = link_posterior(problem, corrected=method == "corrected")
        columns.append(group_densities(posterior, [spots], counts=counts, seed=seed))
    return torch.cat(columns, 1)


def _rows(analysis: UsageAnalysis, gene: int, left_out: LeftOut, density: Tensor) -> pd.DataFrame:
    """A row a group."""
    informed = torch.ones(analysis.prepared.n_spots, dtype=torch.bool)
    if analysis.options.likelihood.conditional:
        informed = analysis.prepared.counts[gene].sum(-1) > 0
    return pd.DataFrame(
        {
            "gene": analysis.prepared.gene_names[gene],
            "group": left_out.names,
            "n_spots": [int(informed[spots].sum()) for spots in left_out.spots],
            "log_density": density.numpy(),
        }
    )


def _total(analysis: UsageAnalysis, gene: int, rows: pd.DataFrame) -> dict[str, Any]:
    """Sum over the groups that have counts of a gene."""
    scored = rows[rows.n_spots > 0]
    density, n_spots = scored.log_density.to_numpy(), int(scored.n_spots.sum())
    reason = analysis.fit.genes[gene].reason
    return {
        "gene": rows.gene.iloc[0],
        "elpd": density.sum(),
        "se": len(density) ** 0.5 * density.std(ddof=1) if len(density) > 1 else np.nan,
        "n_groups": len(scored),
        "n_spots": n_spots,
        "elpd_per_spot": density.sum() / n_spots if n_spots else np.nan,
        "reason": "" if reason == Reason.CONVERGED else reason.value,
    }
