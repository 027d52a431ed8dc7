"""Tables of random effects of groups of spots: how much they vary, every level's, and the units of covariates."""

from __future__ import annotations

import pandas as pd

from pyrosplice._hypothesis.group_tables import table_of_variances
from pyrosplice._usage.analysis.fits import Analyzed, UsageAnalysis
from pyrosplice._usage.grouped.level_table import table_of_levels
from pyrosplice.errors import NotReadyError


def usage_variances(self: Analyzed) -> pd.DataFrame:
    """Tabulate how much random effects vary, a row a gene and standard deviation or correlation.

    Returns
    -------
    DataFrame
        ``gene``, ``effect`` (a term of the formula, ``"space"`` or ``"spot"``), ``parameter`` (``"sd(1)"``,
        ``"correlation(1, age)"``), ``estimate`` (of a logit) and ``reason``, "" or why there is none.

    Raises
    ------
    NotReadyError
        Before ``fit``, or without random effects of groups.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> adata = simulate_isoforms(n_spots=60, n_genes=2, seed=0)
    >>> adata.obs["section"] = [f"S{i % 6}" for i in range(60)]
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="~ 1 + (1 | section)")
    >>> model.fit(print_progress=False)
    >>> model.variance_components()[["gene", "effect", "parameter", "reason"]]
         gene       effect parameter reason
    0  gene_1  1 | section     sd(1)
    1  gene_2  1 | section     sd(1)
    """
    analysis = self.analysis
    require_listed(analysis)
    return _variances(analysis)


def usage_levels(self: Analyzed, effect: str | None = None) -> pd.DataFrame:
    """Tabulate the effects of every level of a grouping factor, a row a gene, level, column and isoform.

    Parameters
    ----------
    effect
        A random term as the formula writes it, ``"1 | section"``, or its grouping factor where that has one term; may
        be left out where there is one.

    Returns
    -------
    DataFrame
        ``gene``, ``level``, ``column``, ``isoform``, ``against`` (the last isoform), ``effect`` (mode of the effect
        on the log odds of the two), ``se`` (its posterior standard deviation, given the variances) and ``reason``.

    Raises
    ------
    NotReadyError
        Before ``fit``, or without random effects of groups.
    InvalidArgumentError
        Another name, or none of several.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> adata = simulate_isoforms(n_spots=60, n_genes=2, seed=0)
    >>> adata.obs["section"] = [f"S{i % 6}" for i in range(60)]
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="~ 1 + (1 | section)")
    >>> model.fit(print_progress=False)
    >>> levels = model.random_effects()
    >>> levels.shape, sorted(levels["level"].unique())  # genes × levels × isoforms but the last
    ((24, 8), ['S0', 'S1', 'S2', 'S3', 'S4', 'S5'])
    """
    analysis = self.analysis
    require_listed(analysis)
    prepared, spec = analysis.prepared, analysis.grouped_spec(with_design=analysis.fit.with_design)
    parts = [
        table_of_levels(spec.restored([gene]), prepared.groups, effect, [name], [prepared.isoform_names(g)])
        for g, (gene, name) in enumerate(zip(analysis.fit.genes, prepared.gene_names, strict=True))
    ]
    return pd.concat(parts, ignore_index=True)


def covariate_units(self: Analyzed) -> pd.DataFrame:
    """Say what the units of each covariate are: spots, or the groups that it is compared between.

    Returns
    -------
    DataFrame
        ``coefficient``, ``unit``, ``n_units`` and ``df``, between–within degrees of freedom of one logit.

    Raises
    ------
    NotReadyError
        Before ``setup_data``, or without random effects of groups.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> adata = simulate_isoforms(n_spots=60, n_genes=2, seed=0)
    >>> adata.obs["section"] = [f"S{i % 6}" for i in range(60)]
    >>> adata.obs["treated"] = [i % 6 < 3 for i in range(60)]
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="~ treated + (1 | section)")
    >>> model.units()  # six sections, however many spots
           coefficient     unit  n_units   df
    0        Intercept  section        6  4.0
    1  treated[T.True]  section        6  4.0
    """
    analysis = self.analysis
    require_listed(analysis)
    return analysis.grouped_spec(with_design=True).units().table()


def standard_deviations(analysis: UsageAnalysis) -> pd.DataFrame:
    """Standard deviation of every effect, a row a gene and a column an effect and parameter."""
    table = _variances(analysis)
    table = table[table["parameter"].str.startswith("sd")]
    name = table["effect"] + ": " + table["parameter"]
    wide = table.assign(name=name).pivot(index="gene", columns="name", values="estimate")
    return wide[list(dict.fromkeys(name))].loc[list(analysis.prepared.gene_names)].rename_axis(columns=None)


def _variances(analysis: UsageAnalysis) -> pd.DataFrame:
    spec, prepared = analysis.grouped_spec(with_design=analysis.fit.with_design), analysis.prepared
    parts = [
        table_of_variances(spec.restored([gene]), prepared.groups, [name], "spot")
        for gene, name in zip(analysis.fit.genes, prepared.gene_names, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def require_listed(analysis: UsageAnalysis) -> None:
    """Raise where there is no list of random effects."""
    if analysis.prepared.listed is None:
        raise NotReadyError(
            "This is of random effects of groups: call setup_data with a formula such as "
            "design_mtx='~ condition + (1 | section)', or with effects=[...]."
        )
