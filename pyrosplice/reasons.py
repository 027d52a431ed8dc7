"""Why a fit ended, and why a test or an effect has no result: one word and one sentence each, for every family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum


class Reason(StrEnum):
    """A word that says why, as records, tables and files hold it; ``text`` says it in a sentence.

    Tables of results have "" where there is nothing to explain.

    Examples
    --------
    >>> from pyrosplice.reasons import Reason
    >>> Reason("no_counts").text
    'the gene has no counts'
    """

    text: str

    def __new__(cls, value: str, text: str = "") -> Reason:
        """A word with its sentence."""
        reason = str.__new__(cls, value)
        reason._value_, reason.text = value, text
        return reason

    RUNNING = "running", "not finished"
    CONVERGED = "converged", "the promised further improvement is below the tolerance"
    BOUNDARY = "boundary", "at an optimum with dispersion zero: counts no more variable than Poisson's"
    SEPARATED = (
        "separated",
        "the optimum is at infinity: an isoform, or any count in a group, never seen, or a covariate that separates",
    )
    NO_COUNTS = "no_counts", "the gene has no counts"
    MAX_EPOCHS = "max_epochs", "the number of iterations ran out"
    STALLED = "stalled", "no step improves the objective, yet its gradient is not small"
    UNBOUNDED = (
        "unbounded",
        "the density has no maximum: σ ran to 0 in a joint fit; hold σ, give it a prior, or fit the marginal",
    )
    ALL_OR_NOTHING = (
        "all_or_nothing",
        "σ ran to infinity: no spot has molecules of two isoforms; hold σ, or give it a prior",
    )
    SADDLE = (
        "saddle",
        "the gradient is zero, but the density rises in some direction: a symmetric start, or no maximum at all",
    )
    NO_MODE = (
        "no_mode",
        "the integrated sites have no mode, or no Gaussian curvature at it, so that there is no Laplace value",
    )
    NOT_FINITE = "not_finite", "the objective or its gradient is not finite"
    AT_RANGE_END = "at_range_end", "the estimate is an end of the range that was searched"
    RAISED = "raised", "the likelihood raised an error for this gene, which keeps a start, the last good values or none"
    NOT_REFINED = (
        "not_refined",
        "converged by Laplace's method, whose estimates these are; refine() found no optimum from there",
    )
    FAILED = "failed", "no optimum was found; files of earlier versions do not say why"
    SINGULAR = (
        "singular",
        "a covariance is singular, or too small against the spread of the data; the last sound parameters are kept",
    )
    FEW_CELLS = "few_cells", "too few distinct cells: fewer than components, or hardly any left out to judge by"
    ONE_ISOFORM = "one_isoform", "one isoform of the gene is seen, so that its usage does not vary"
    NOT_IDENTIFIED = (
        "not_identified",
        "over the spots or cells where the gene has counts, what is asked about does not vary beside the rest",
    )
    ENDLESS_SIGMA = (
        "endless_sigma",
        "σ is above 5, nearly every spot has one isoform only: the score test is right, or give σ a prior",
    )
    FEW_MODES = "few_modes", "the covariate is like one or two waves over the tissue, which holds no replicate of them"
    BETWEEN_SECTIONS = (
        "between_sections",
        "the covariate is constant in every section, and sections are too few to replicate it",
    )
    NO_NEIGHBORS = (
        "no_neighbors",
        "no path over neighbors leads from the spot to one that was fitted, so that its field is the prior's",
    )
    FEW_SPOTS = "few_spots", "the spots or cells leave no degrees of freedom for the variance of the residuals"

    FEW_COUNTS = "few_counts", "too few spots have counts of the gene to say whether they are near each other"


OPTIMA = (Reason.CONVERGED, Reason.BOUNDARY)
"""Reasons of fits that are at an optimum with finite estimates."""


def describe_reasons(reasons: Iterable[str]) -> str:
    """How many fits ended how, most first: ``298 converged, 2 stalled``.

    Examples
    --------
    >>> from pyrosplice.reasons import describe_reasons
    >>> describe_reasons(["converged", "separated", "converged"])
    '2 converged, 1 separated'
    """
    return ", ".join(f"{number} {reason}" for reason, number in Counter(reasons).most_common())
