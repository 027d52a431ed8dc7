"""Which isoforms of a gene change: a test of each isoform's share, and genes and isoforms stage by stage."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._hypothesis.beyond_threshold import threshold_test
from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice._hypothesis.stagewise import stagewise_tests
from pyrosplice._hypothesis.test_table import TestTable
from pyrosplice._usage.analysis.differential_usage import usage_tests
from pyrosplice._usage.analysis.effects import effect_parts, effects_asked, why_missing
from pyrosplice._usage.analysis.fits import Analyzed, UsageAnalysis
from pyrosplice._usage.analysis.options import UsageTestOptions
from pyrosplice._usage.gene_tests.terms import CovarianceLaw
from pyrosplice._usage.reading.design import Design
from pyrosplice.effects._reference_df import DfRule
from pyrosplice.errors import check_number, check_option, check_share

Array = NDArray[np.float64]
Scale = Literal["usage_points", "log_odds"]


def test_isoforms(  # noqa: PLR0913 (what is tested, and how, by keyword)
    self: Analyzed,
    *,
    alpha: float = 0.05,
    scale: Scale = "usage_points",
    threshold: float = 0.0,
    variance: Literal["robust", "model"] | None = None,
    law: CovarianceLaw | None = None,
    df: DfRule | float | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    r"""Test which isoforms change with each covariate: genes first, then the isoforms of those that were found.

    After ``fit(with_design_mtx=True)``. An isoform is tested by the effect of :meth:`get_effects` over its standard
    error, against the rest of its gene: on the scale of shares that its average share of the gene does not change, by
    Student's t on the same degrees of freedom as the interval there. No isoform is a reference: with
    ``isoform_effect="symmetric"``, or a GLM, the order of isoforms makes no difference.

    Genes are screened by their Wald tests (:meth:`test_differential_usage`), adjusted over the genes of a covariate;
    then :mod:`pyrosplice._hypothesis.stagewise` holds isoforms to what is left, so that among the genes found the
    expected share of those with any false rejection is at most ``alpha``. With a ``threshold`` above 0 a gene is
    screened by its smallest isoform's p-value times their number.

    400 genes of four isoforms on 144 spots, two seeds, three in four without an effect, σ = .5, a covariate like noise:
    3.8 % (GLM), 3.4 % (independent spots) and 2.8 % (``"glmm-full"``, θ = .5) of the null genes' isoforms had a p-value
    of at most .05, .6, .6 and .2 % of at most .01; of the genes found at ``alpha=0.05``, 2.0, 1.0 and 2.0 % were null.

    Parameters
    ----------
    alpha
        Overall false discovery rate, at which ``pvalue_stagewise`` holds and at no other.
    scale
        ``"usage_points"``: percentage points of usage; ``"log_odds"``: against the geometric mean of all isoforms, on
        which all others change where one does.
    threshold
        Smallest effect of interest on that scale: the null is ``|effect| <= threshold``.
    variance, law, df
        As of :meth:`get_effects`.
    level
        Confidence of the intervals.

    Returns
    -------
    pandas.DataFrame
        One row a gene, covariate and isoform: ``effect``, ``se``, ``lower``, ``upper``, ``statistic``, ``pvalue`` (of
        the isoform alone), ``pvalue_adj`` (Benjamini–Hochberg over all isoforms of a covariate), ``reason``, ``df``,
        ``gene_pvalue``, ``gene_pvalue_adj`` and ``pvalue_stagewise``: at most ``alpha`` is a rejection, 1 where the
        gene was not found, NaN (with the gene's ``reason``) where it could not be tested.

    Raises
    ------
    NotReadyError
        Before ``setup_data`` or ``fit``.
    InvalidArgumentError
        A fit without covariates; ``alpha`` or ``level`` outside (0, 1); a negative ``threshold``; another ``scale``,
        ``variance`` or ``law``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> adata = simulate_isoforms(n_spots=100, n_genes=3, covariates=("iid",), beta=[[[1.0, 0.0]]] * 3, seed=0)
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="iid")
    >>> model.fit(with_design_mtx=True, print_progress=False)
    >>> model.test_isoforms()["pvalue_stagewise"].lt(0.05).any()
    np.True_
    """
    check_share("alpha", alpha)
    check_option("scale", scale, get_args(Scale))
    threshold = check_number("threshold", threshold)
    analysis = self.analysis
    design = effects_asked(analysis, level=level, variance=variance, law=law, df=df, what="test_isoforms")
    table = _isoform_rows(analysis, design, (scale, threshold, level), variance=variance, law=law, df=df)
    if threshold:
        screen = None
    else:
        given: dict[str, Any] = {"variance": variance, "law": law, "df": df, "n_surrogates": None, "random_seed": None}
        options = UsageTestOptions(method="wald", by="covariate", contrasts=None, **given)
        screen = usage_tests(analysis, options, show=False)
    return _by_stages(table, screen, list(design.names), alpha)


test_isoforms.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest's


def _isoform_rows(
    analysis: UsageAnalysis, design: Design, asked: tuple[str, float, float], **options: Any
) -> pd.DataFrame:
    """Tests of every isoform by itself, a row a gene, covariate and isoform."""
    scale, threshold, level = asked
    prepared, tables = analysis.prepared, dict[int, pd.DataFrame]()
    parts, robust = effect_parts(analysis, design, **options)
    for batch, fits, effects in parts:
        found = effects[scale]
        ends = found.interval(level)
        values = [value.numpy() for value in (found.estimate, found.standard_error, *ends)]
        shape = values[0].shape
        dof = np.full(shape, np.nan) if found.dof is None else np.broadcast_to(found.dof.numpy()[..., None], shape)
        for row, g in enumerate(batch):
            effect, se, lower, upper = (value[row] for value in values)
            known = None if found.dof is None else dof[row]
            statistic, pvalue = threshold_test(effect, se, threshold, known)
            names = prepared.isoform_names(g)
            why = why_missing([v.ravel() for v in (effect, se, lower, upper)], prepared.counts[g], fits[row], robust)
            tables[g] = TestTable(
                labels={
                    "gene": np.repeat(prepared.gene_names[g], effect.size),
                    "covariate": np.repeat(design.names, len(names)),
                    "isoform": np.tile(names, len(design.names)),
                },
                **{"effect": effect, "se": se, "lower": lower, "upper": upper},
                **{"statistic": statistic, "pvalue": pvalue, "pvalue_adj": pvalue},
                why=why,
                more={"df": dof[row].ravel(), "position": np.repeat(g, effect.size)},
            ).to_frame()
    return pd.concat([tables[g] for g in range(analysis.n_genes)], ignore_index=True)


def _by_stages(table: pd.DataFrame, screen: dict[str, Any] | None, covariates: list[str], alpha: float) -> pd.DataFrame:
    """The table with p-values adjusted over isoforms, and stage by stage, for each covariate.

    An isoform with a test in a gene without one has the gene's reason.
    """
    out = table.assign(gene_pvalue=np.nan, gene_pvalue_adj=np.nan, pvalue_stagewise=np.nan)
    n_genes = int(table["position"].max()) + 1
    for t, name in enumerate(covariates):
        rows = np.flatnonzero(table["covariate"] == name)
        pvalue, gene = (table[column].to_numpy()[rows] for column in ("pvalue", "position"))
        tested = _smallest(pvalue, gene, n_genes) if screen is None else screen["pvalue"][:, t]
        found = stagewise_tests(tested, pvalue, gene, alpha=alpha, within="any" if screen is None else "shares")
        columns = {
            "pvalue_adj": adjust_pvalues(pvalue),
            "gene_pvalue": tested[gene],
            "gene_pvalue_adj": found.screened[gene],
            "pvalue_stagewise": found.confirmed,
        }
        for column, values in columns.items():
            out.loc[out.index[rows], column] = values
        if screen is not None:
            lost = rows[np.isnan(tested[gene]) & (table["reason"].to_numpy()[rows] == "")]
            out.loc[out.index[lost], "reason"] = np.array(screen["reason"])[table["position"].to_numpy()[lost], t]
    return out.drop(columns="position")


def _smallest(pvalue: Array, gene: NDArray[np.intp], n_genes: int) -> Array:
    """Bonferroni's p-value of each gene ``(G,)``, NaN where no isoform has one."""
    series = pd.Series(pvalue).groupby(gene)
    return (series.min() * series.count()).clip(upper=1.0).reindex(range(n_genes)).to_numpy()
