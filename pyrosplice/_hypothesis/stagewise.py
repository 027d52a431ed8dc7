r"""Stage-wise tests: genes first, then the isoforms of those that were found, with control over genes.

Genes are screened by Benjamini–Hochberg at α. With R of G found, the isoforms of each are tested at family-wise level
:math:`\alpha R / G`, which keeps the overall false discovery rate (the expected share, among genes found, of those
with any false rejection, of the gene or of an isoform) at α. Within a gene that was found something is known to be
false, and so fewer hypotheses can be true at once (Shaffer 1986): where isoforms are shares of a whole, two at least
have changed, so that the multipliers of the ordered p-values are n − 2, n − 2, n − 2, n − 3, …, 1; where one may change
alone n − 1, n − 1, n − 2, …, 1. Source: Van den Berge, Soneson, Robinson & Clement (2017) Genome Biology 18:151.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice.errors import InvalidArgumentError, check_option, check_share

Array = NDArray[np.float64]
Within = Literal["shares", "any"]


@dataclass(frozen=True)
class StagewiseResult:
    """What both stages say.

    Attributes
    ----------
    screened
        Genes' p-values, adjusted (Benjamini–Hochberg) ``(G,)``.
    confirmed
        Isoforms' p-values, adjusted for both stages ``(R,)``: at most α is a rejection at the α of the call, and at no
        other. 1 for those of genes that were not found, NaN for those without a test, or whose gene has none.
    """

    screened: Array
    confirmed: Array


def stagewise_tests(
    gene_pvalue: ArrayLike, pvalue: ArrayLike, gene: ArrayLike, *, alpha: float = 0.05, within: Within = "shares"
) -> StagewiseResult:
    """Adjust p-values of genes and of their isoforms stage by stage.

    Parameters
    ----------
    gene_pvalue
        Of each gene ``(G,)``; NaN is no test.
    pvalue
        Of each isoform ``(R,)``; NaN is no test.
    gene
        Which gene each isoform is of ``(R,)``, from 0 to G − 1.
    alpha
        Overall false discovery rate.
    within
        ``"shares"``: a gene that has changed has two isoforms that have; every isoform of the whole must be listed, as
        one that is left out may be the other. ``"any"``: one at least. Where an isoform of a gene has no test, it may
        be the one, and the others are held to all of their number (Holm).

    Raises
    ------
    InvalidArgumentError
        ``alpha`` outside (0, 1), another ``within``, p-values outside [0, 1], genes that there are not.
    """
    check_share("alpha", alpha)
    check_option("within", within, get_args(Within))
    gene_p, p, of = np.asarray(gene_pvalue, float), np.asarray(pvalue, float), np.asarray(gene)
    _check(gene_p, p, of)
    of = of.astype(np.intp)
    screened = adjust_pvalues(gene_p)
    found = screened <= alpha
    tested = int(np.isfinite(gene_p).sum())
    confirmed = np.where(np.isnan(p) | np.isnan(gene_p[of]), np.nan, 1.0)
    for g in np.flatnonzero(found):
        own = np.flatnonzero(of == g)
        adjusted = _within_gene(p[own], within) * tested / found.sum()
        confirmed[own] = np.clip(np.maximum(adjusted, screened[g]), 0.0, 1.0)
    return StagewiseResult(screened, confirmed)


def _within_gene(p: Array, within: Within) -> Array:
    """Family-wise adjusted p-values of the isoforms of a gene that was found, not capped at one."""
    out, known = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    n = len(known)
    left = np.arange(n, 0, -1, dtype=np.float64)
    if n == len(p):
        left = np.minimum(left, n - {"shares": 2, "any": 1}[within])
    order = known[np.argsort(p[known], kind="stable")]
    out[order] = np.maximum.accumulate(p[order] * left) if n else p[order]
    return out


def _check(gene_p: Array, p: Array, of: NDArray[np.intp]) -> None:
    for name, values in (("gene_pvalue", gene_p), ("pvalue", p)):
        if values.ndim != 1 or (values < 0).any() or (values > 1).any():
            raise InvalidArgumentError(f"{name}: expected p-values in one row, from 0 to 1.")
    if of.shape != p.shape or (len(of) and not (of.dtype.kind in "iu" and of.min() >= 0 and of.max() < len(gene_p))):
        raise InvalidArgumentError(f"gene: expected a gene's number below {len(gene_p)} for each of {len(p)} isoforms.")
