r"""Whether a random effect of usage is there at all, and the field of a fit as a map.

The test is by the restricted likelihood ratio of the model without the effect, as in expression
(:mod:`pyrosplice._hypothesis.variance.component_ratio`): the Q logits of a gene share one variance, so that a level of
a grouping factor counts Q times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._hypothesis.variance.component_ratio import (
    ComponentRatios,
    check_component,
    component_ratios,
    ratio_table,
)
from pyrosplice._hypothesis.variance.effect_components import component_of
from pyrosplice._usage.analysis.fits import Analyzed, batches_alike
from pyrosplice._usage.analysis.group_effects import require_listed
from pyrosplice._usage.analysis.posterior_draws import gene_positions
from pyrosplice._usage.fitted_gene import FittedGene
from pyrosplice._usage.grouped.usage_problem import GroupedSpec
from pyrosplice.effects._isoform_effect import basis_of
from pyrosplice.errors import NotReadyError, check_integer
from pyrosplice.glmm._arrow.laid_out import LaidOut


def test_usage_component(self: Analyzed, component: str, *, n_bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
    """Test whether a random effect varies at all, by the restricted likelihood ratio of the model without it.

    Of a fit with random terms in its formula or with ``effects=``. The fit is that of :meth:`fit`, with covariates or
    without; the model without the effect is fitted here.

    Parameters
    ----------
    component
        A random term as the formula writes it, ``"(1 | section)"``; slopes of a longer one, ``"(0 + age | donor)"`` of
        ``(1 + age | donor)``; ``"space"``, or ``"spot"``.
    n_bootstrap
        Data sets a gene that are drawn from the model without it and fitted with and without: p-values in steps of
        1 / (n + 1), from 2 n fits. 0 for the law without draws.
    seed
        Of what is drawn; each gene has its own numbers.

    Returns
    -------
    DataFrame
        By gene ``statistic``, ``pvalue``, ``pvalue_adj``, ``law`` and ``reason``. ``law`` is ``"finite sample"`` for
        one variance, ``"mixture of chi2"`` for covariances, or ``"bootstrap"``.

    Raises
    ------
    NotReadyError
        Before ``fit``, or without such effects.
    InvalidArgumentError
        No such effect; an intercept without its slopes; a field whose ρ was estimated.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> from pyrosplice.effects import Field
    >>> model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=2, seed=0), effects=Field(k_neighbors=4))
    >>> model.fit(batch_size=2, print_progress=False)
    >>> list(model.test_component("space").columns)
    ['statistic', 'pvalue', 'pvalue_adj', 'reason', 'law']
    """
    analysis = self.analysis
    require_listed(analysis)
    check_integer("seed", seed, least=0)
    fit, effects = analysis.fit, analysis.effects
    part = component_of(effects, component, noise="spot")
    check_component(effects, part, n_bootstrap)
    spec = analysis.grouped_spec(with_design=fit.with_design)
    batches, parts = batches_alike(analysis, spec, fit.genes), []
    for batch in batches:
        genes = [fit.genes[g] for g in batch]
        seeds = [np.random.SeedSequence([seed, g]) for g in batch]
        problem = spec.at(genes).problem(analysis.counts(batch))
        own = component_ratios(problem, part, spec.restored(genes), n_bootstrap=n_bootstrap, seeds=seeds)
        parts.append(own)
    order = np.argsort(np.concatenate(batches))
    found = ComponentRatios.joined(parts).take(order)
    ended = np.array([gene.reason.value for gene in fit.genes], dtype=object)
    table = ratio_table(found, ended, part, n_bootstrap=n_bootstrap)
    return table.set_axis(pd.Index(analysis.prepared.gene_names, name="gene"))


test_usage_component.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest's


def usage_field(self: Analyzed, genes: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Map the field of each gene: how far the log odds of spots deviate from what all else in the model says.

    It is the mode of the field given the counts and the estimated variances, of the logits of the isoforms against the
    last one, drawn towards zero where counts say little. Of ``Field(by=...)`` it is the coefficient that varies in
    space, not multiplied.

    Parameters
    ----------
    genes
        Name(s) of genes; all by default.

    Returns
    -------
    DataFrame
        Spots by their names × ``gene`` and ``isoform`` (all but the last). Zero for a gene whose field has no variance,
        NaN for a gene without a fit.

    Raises
    ------
    KeyError
        A name that is not in ``gene_names``.
    NotReadyError
        Before ``fit``, without random terms or ``effects=``, or without a field.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> from pyrosplice.effects import Field
    >>> model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=2, seed=0), effects=Field(k_neighbors=4))
    >>> model.fit(batch_size=2, print_progress=False)
    >>> model.fitted_field().columns.names
    FrozenList(['gene', 'isoform'])
    """
    analysis = self.analysis
    require_listed(analysis)
    fit, prepared = analysis.fit, analysis.prepared
    if analysis.effects.space is None:
        raise NotReadyError("The model has no field; expected model_type='glmm-full'.")
    spec, columns = analysis.grouped_spec(with_design=fit.with_design), dict[tuple[str, str], NDArray[np.float64]]()
    for g in gene_positions(analysis, genes):
        field = field_at_mode(spec, analysis.counts([g]), fit.genes[g]).numpy()
        names = prepared.isoform_names(g)
        columns |= {(prepared.gene_names[g], names[k]): field[:, k] for k in range(field.shape[1])}
    return pd.DataFrame(columns, index=prepared.data.adata.obs_names).rename_axis(columns=["gene", "isoform"])


def field_at_mode(spec: GroupedSpec, counts: Tensor, gene: FittedGene) -> Tensor:
    """Field ``(N, Q)`` of one gene ``(1, N, K)`` on its logits, standard deviation and all; NaN without a fit."""
    problem, fit = spec.at([gene]).problem(counts), spec.restored([gene])
    out = torch.full((spec.n_spots, gene.n_logits), torch.nan, dtype=torch.float64)
    for _, laplace in LaidOut(problem).at_fit(fit):
        if problem.space is not None and laplace.mode.found.all():
            out = fit.sds[0, fit.inner.index("space")] * problem.space.spread(laplace.latents.field)[0]
    basis = basis_of(problem.isoform_effect, counts)
    return out if basis is None else basis.logits(out.unsqueeze(0))[0]
