"""What the pictures and tables of an analysis of isoform usage say, in sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from pyrosplice._report import ReportFigure, ReportSection, ReportTable, pictured

ALPHA = 0.05  # adjusted p-values up to here are counted as discoveries
LOW = -0.005  # a bias of σ beyond this is worth a sentence
GENE_COLUMNS = ("gene", "n_isos", "count_avg", "sigma", "theta", "converged", "reason")
TEST_COLUMNS = ("gene", "covariate", "isoform", "effect", "statistic", "pvalue", "pvalue_adj", "reason")
SYMBOLS = {"theta": "θ", "sigma": "σ", "effect": "effect β"}

Picture = tuple[bytes, bytes | None]  # light, and dark where there is one


@dataclass(frozen=True, kw_only=True)
class UsageReport:
    """Tables and pictures of an analysis; what is None or empty has no section.

    Attributes
    ----------
    genes
        One row a gene: ``gene``, ``converged``, and what else of ``GENE_COLUMNS`` there is.
    n_spots
        Spots, or cells.
    spatial, differential
        Tests, one row a gene, or a gene and covariate with the largest effect of an isoform.
    truth
        Tables with ``estimate`` and ``truth`` by name: ``theta``, ``sigma``, ``effect``.
    pictures
        PNG files by name: ``spatial_variability_qq``, ``usage_<gene>``, ``differential_usage_qq``,
        ``volcano_<covariate>``, ``recovered_<name>``.
    """

    genes: pd.DataFrame
    n_spots: int
    spatial: pd.DataFrame | None = None
    differential: pd.DataFrame | None = None
    truth: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)

    def sections(self) -> list[ReportSection]:
        """Every section that there is something to say in, in the order of an analysis."""
        sections = [self._fits()]
        if self.spatial is not None:
            sections.append(self._space(self.spatial))
        if self.differential is not None:
            sections.append(self._covariates(self.differential))
        return sections + ([self._recovery()] if self.truth else [])

    def _fits(self) -> ReportSection:
        lost = int((~self.genes["converged"].astype(bool)).sum())
        went = "All fits converged." if not lost else f"{lost} fits did not converge: column reason says why."
        text = (
            f"{len(self.genes):,} genes with several isoforms were fitted on {self.n_spots:,} spots, "
            f"each gene on its own. {went}"
        )
        columns = [name for name in GENE_COLUMNS if name in self.genes]
        words = "count_avg is the mean number of molecules a spot"
        if "sigma" in self.genes:
            words += (
                "; σ (sigma) is how far usage varies between spots, on the logit scale (0: not at all; 1: odds change "
                "by a factor of e); θ (theta) is the share of that variance that neighbouring spots have in common"
            )
        shown = self.genes[columns].round({"sigma": 3, "theta": 3})
        table = ReportTable(frame=shown, text=f"Fits, a row a gene: {words}.", file="genes.csv")
        return ReportSection(title="What was fitted", text=text, parts=[table])

    def _space(self, tests: pd.DataFrame) -> ReportSection:
        found, asked = _found(tests)
        text = (
            "The score test asks of every gene whether neighbouring spots use its isoforms more alike than spots at "
            f"random. {found} of {asked} genes are found at an adjusted p-value of at most {ALPHA:g}."
        )
        if "theta" in self.truth:
            none = self.truth["theta"].loc[self.truth["theta"]["truth"] == 0, "gene"]
            false = int((tests.loc[tests["gene"].isin(none), "pvalue_adj"] <= ALPHA).sum())
            text += f" Of the {len(none)} genes that were simulated without a spatial part, {false} are among them."
        parts: list[ReportFigure | ReportTable] = [
            *pictured(
                self.pictures,
                "spatial_variability_qq",
                "Quantile-quantile plot of the p-values for spatial variability, with the band of uniform p-values.",
                "Each point is a gene: its p-value against the one expected in its place if nothing varied in space. "
                + _above_band(tests, "vary in space"),
            ),
            _table(tests, "Tests of spatial variability, smallest p-values first", "spatial_variability.csv"),
        ]
        for name in self.pictures:
            if name.startswith("usage_"):
                gene = name.removeprefix("usage_")
                parts += pictured(
                    self.pictures,
                    name,
                    f"Maps of the usage of each isoform of {gene}: raw ratios above, fitted ratios below.",
                    f"{gene}, one of the clearest: a column an isoform. Above, the share of a spot's molecules that is "
                    "of the isoform (coarse, since a spot has few; small gray spots have none); below, the model's "
                    "estimate in the same colors, which borrows from the neighbours. Bright regions below are where an "
                    "isoform is used more than elsewhere: believe the pattern, not single spots.",
                )
        return ReportSection(title="Does usage vary in space?", text=text, parts=parts)

    def _covariates(self, tests: pd.DataFrame) -> ReportSection:
        counts = {name: _found(part)[0] for name, part in tests.groupby("covariate", sort=False, observed=True)}
        each = ", ".join(f"{name}: {count}" for name, count in counts.items())
        text = (
            "The score test asks whether usage follows a covariate beyond what the spatial effect explains. "
            f"Genes found at an adjusted p-value of at most {ALPHA:g}: {each}."
        )
        parts: list[ReportFigure | ReportTable] = []
        parts += pictured(
            self.pictures,
            "differential_usage_qq",
            "Quantile-quantile plot of the p-values for differential usage, a curve a covariate.",
            "Each point is a gene and covariate. A curve that leaves the band upwards is a covariate that usage "
            "follows; one that stays within it is a covariate that nothing follows as far as these data can tell.",
        )
        for name, count in counts.items():
            conclude = (
                "The colored points above the dashed line are the genes to look at"
                if count
                else "No gene is found, so there is no line: whatever effects there are, they are not told from none"
            )
            parts += pictured(
                self.pictures,
                f"volcano_{name}",
                f"Volcano plot for {name}: effect of the isoform that moves most against minus log10 p.",
                f"Effect of {name} (of the isoform that moves most, in log-odds a unit of the covariate) against the "
                f"evidence for it. {conclude}.",
            )
        parts.append(_table(tests, "Tests of differential usage, smallest p-values first", "differential_usage.csv"))
        return ReportSection(title="Does usage follow the covariates?", text=text, parts=parts)

    def _recovery(self) -> ReportSection:
        text = (
            "The tissue was simulated, so the truth is known: estimates (of the fit with covariates) stand beside it. "
            "Points on the line are exact."
        )
        parts: list[ReportFigure | ReportTable] = []
        rows = []
        for name, table in self.truth.items():
            error = table["estimate"] - table["truth"]
            bias, rmse = float(error.mean()), float((error**2).mean() ** 0.5)
            rows.append({"of": SYMBOLS[name], "estimates": len(table), "bias": bias, "RMSE": rmse})
            parts += pictured(
                self.pictures,
                f"recovered_{name}",
                f"Estimates of {SYMBOLS[name]} against the truth, with the line of equality.",
                f"Bias {bias:+.3f}, root mean square error {rmse:.3f}. " + self._why(name, bias),
            )
        words = "Mean error (bias) and root mean square error of the estimates"
        parts.append(ReportTable(frame=pd.DataFrame(rows), text=f"{words}."))
        return ReportSection(title="How well is the truth recovered?", text=text, parts=parts)

    def _why(self, name: str, bias: float) -> str:
        """What is behind the errors of an estimate."""
        if name == "theta":
            return (
                "θ is hard to tell from one gene: its estimates scatter between 0 and 1, and at the two ends they "
                "can only err to one side. The medians are what to compare with the line."
            )
        if name == "effect":
            return (
                "The points at a true effect of 0 scatter around it as far as any estimate errs; effects well beyond "
                "that scatter can be told from none."
            )
        depth = f" ({self.genes['count_avg'].mean():.1f} here)" if "count_avg" in self.genes else ""
        if bias > LOW:
            return "σ is estimated without a bias that could be told here."
        return (
            "σ is a little low because the likelihood is Laplace's approximation, which takes a spot's random effect "
            f"as normal given the counts. With few molecules a spot{depth} it is skewed, and the approximation favors "
            "small variances; with more molecules this goes away. MultinomGLMM.refine() gives back what is lost, by "
            "importance sampling: 60 to 94 % of the bias of σ² at two molecules a spot, where it was measured."
        )


def _found(tests: pd.DataFrame) -> tuple[int, int]:
    return int((tests["pvalue_adj"] <= ALPHA).sum()), int(tests["pvalue_adj"].notna().sum())


def _above_band(tests: pd.DataFrame, what: str) -> str:
    found, asked = _found(tests)
    if found:
        return (
            f"Points above the gray band are more than chance gives: these genes {what}. Of those found at the "
            f"adjusted p-value, about one in {1 / ALPHA:.0f} may be false."
        )
    return f"None of the {asked} genes is beyond what chance gives."


def _table(tests: pd.DataFrame, text: str, file: str) -> ReportTable:
    columns: Sequence[str] = [name for name in TEST_COLUMNS if name in tests]
    ordered = tests.sort_values("pvalue", kind="stable")[columns]
    if "reason" in ordered and not ordered["reason"].fillna("").astype(bool).any():
        ordered = ordered.drop(columns="reason")  # every test could be done
    return ReportTable(frame=ordered, text=f"{text}.", file=file)
