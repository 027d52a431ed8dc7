"""Posterior draws of many genes, as one tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import xarray as xr

from pyrosplice._usage.analysis.drawn_usage import listed_posterior
from pyrosplice._usage.analysis.fits import Analyzed, UsageAnalysis
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.posterior._chains import in_chains
from pyrosplice.posterior._draw_options import DrawOptions
from pyrosplice.posterior._draws import posterior_tree
from pyrosplice.posterior._genes import joined
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.posterior._problem import PosteriorProblem
from pyrosplice.posterior._progress import bar, progress
from pyrosplice.posterior._tree import check_groups, numbers_per_draw


def posterior(  # noqa: PLR0913 (a documented interface)
    self: Analyzed,
    genes: str | Sequence[str] | None = None,
    *,
    num_samples: int = 1000,
    method: str = "laplace",
    hyper: str = "plug-in",
    groups: Sequence[str] | None = None,
    usage: bool = False,
    seed: int = 0,
    nuts_options: NutsOptions | None = None,
    max_memory: str | float | None = None,
    priors: Mapping[str, Any] | None = None,
    num_chains: int | None = None,
    over_memory: str = "refuse",
    quiet: bool = False,
) -> xr.DataTree:
    """Draw from the posteriors of the fitted models: one ``xarray.DataTree`` with the groups that ArviZ reads.

    Coordinates are names: ``gene`` (in the order asked for), ``spot`` (``obs_names``), ``covariate``, and
    ``isoform_name`` ``(gene, isoform)`` (``var_names``). Genes with the same number of isoforms are drawn as one
    batch. Where genes differ in that number, those with fewer are padded with NaN along ``isoform``, ``logit``
    and ``component`` (one tree, in which ``tree["posterior"].theta`` has every gene, is worth more than one a
    number), and their isoforms are ``""``; counts are floats then. :func:`pyrosplice.posterior.one_gene` takes a
    gene out without its padding, isoforms by name; the tables of :mod:`pyrosplice.posterior` know of it.

    A factor of the design has the coefficients that were fitted, of each level against the first.

    Parameters
    ----------
    genes
        Name(s) of the genes to draw from; all by default. The tree is large: the counts alone are draws × genes ×
        spots × isoforms, so draw from many genes with ``groups=()``.
    num_samples, method, hyper, groups, usage, seed, nuts_options, max_memory, num_chains, over_memory, quiet
        As of :meth:`pyrosplice.MultinomGLM.posterior`.
    priors
        Of a fit with random terms or ``effects=``: Pyro distributions by site of :class:`~pyrosplice.glmm.CountGLMM`,
        such as ``"1 | section: sd(1)"``, ``"space_sd"``, ``"noise_sd"``; flat by default, as in the fit. All of these
        have to be proper for ``hyper="integrate"`` and for ``method="nuts"``. Such a tree has ``beta``, ``bias_eta``,
        every level's effect, ``space`` (not multiplied) and ``noise`` on the logits, and standard deviations.

    Raises
    ------
    KeyError
        A name that is not in ``gene_names``.
    InvalidArgumentError
        No gene; ``priors`` of other fits, which have the constructor's; and as of
        :meth:`pyrosplice.MultinomGLM.posterior`, a joint fit among it.
    NotReadyError
        Before ``setup_data`` or ``fit``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
    >>> model.fit(print_progress=False)
    >>> tree = model.posterior("gene_2", num_samples=50)
    >>> dict(tree["posterior"]["sigma"].sizes), list(tree["posterior"].data_vars)
    ({'chain': 2, 'draw': 25, 'gene': 1, 'component': 1}, ['beta', 'bias_eta', 'nu', 'sigma', 'theta_logit',
    'theta', 'sigma2'])
    """
    analysis = self.analysis
    analysis.shipped_only("posterior")
    positions, prepared = gene_positions(analysis, genes), analysis.prepared
    asked = DrawOptions(
        num_samples=num_samples,
        method=method,
        hyper=hyper,
        genes=None,
        names=None,
        groups=groups,
        usage=usage,
        seed=seed,
        nuts_options=nuts_options,
        max_memory=max_memory,
        num_chains=num_chains,
        over_memory=over_memory,
        quiet=quiet,
    )
    if prepared.listed is not None:
        return listed_posterior(analysis, positions, asked, priors)
    if priors is not None:
        raise InvalidArgumentError("priors: they are those of the constructor; this one is for fits with effects.")
    batches = prepared.batches(analysis.n_genes, group=True)
    parts = [own for batch in batches if (own := [gene for gene in batch if gene in positions])]
    problems = [usage_problem(analysis, own) for own in parts]
    asked.check()
    kept = _within_memory(problems, asked)
    names: dict[str, Sequence[Any]] = {"spot": prepared.data.adata.obs_names}
    design = prepared.design if analysis.fit.with_design else None
    if design is not None:
        names["covariate"] = [design.names[p] for p in design.estimable]
    trees, total = [], len(positions) * kept.steps_of_gene
    with progress(quiet=quiet), bar(total, method, kept.step):
        for problem, own in zip(problems, parts, strict=True):
            here = names | {"gene": [prepared.gene_names[gene] for gene in own]}
            trees.append(posterior_tree(problem, replace(kept, names=here, max_memory="inf")))
    isoforms = {prepared.gene_names[gene]: prepared.isoform_names(gene) for gene in positions}
    return in_chains(joined(trees, list(isoforms), isoforms), asked, kept)


def usage_problem(analysis: UsageAnalysis, genes: Sequence[int]) -> PosteriorProblem:
    """The posterior of fitted genes with the same number of isoforms."""
    fit = analysis.fit
    spec = analysis.spec(analysis.model_type, with_design=fit.with_design)
    return spec.rebuild_estimable(analysis.counts(genes), [fit.genes[gene] for gene in genes]).posterior_problem()


def _within_memory(problems: Sequence[PosteriorProblem], asked: DrawOptions) -> DrawOptions:
    """Take as many draws as memory allows, where all, padded to the most isoforms, would not fit; else raise."""
    numbers: Counter[str] = Counter()
    widest = max(problem.counts.shape[-1] for problem in problems)
    for problem in problems:
        made = check_groups(problem, asked.groups, usage=asked.usage)
        more: dict[str, Any] = {"usage": asked.usage, "method": asked.method, "n_isos": widest}
        numbers.update(numbers_per_draw(problem, problem.n_genes, made, **more))
    return asked.within_memory(numbers)


def gene_positions(analysis: UsageAnalysis, genes: object) -> list[int]:
    """Positions of the genes that are named, each once; of all for None."""
    if not (genes is None or isinstance(genes, Iterable)):
        raise InvalidArgumentError(f"genes: expected names of genes, found {genes!r}.")
    names = analysis.prepared.gene_names
    chosen = names if genes is None else (genes,) if isinstance(genes, str) else tuple(genes)
    positions = [analysis.position(name) for name in dict.fromkeys(chosen)]
    if not positions:
        raise InvalidArgumentError("genes: expected one name or more, found none.")
    return positions
