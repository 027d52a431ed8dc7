"""Genes of the studies: each study in small, and none with a simulator of its own."""

import ast
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from tests.studies import expression_small_groups, laplace_nuts, sv_coverage
from tests.studies.sv_shapes import COVERED, SHAPES, Cell, nulls, simulate

FOLDER = Path(__file__).parent
DRAWS_COUNTS = {"poisson", "multinomial", "binomial", "negative_binomial", "Poisson", "Multinomial"}
MAKES_FAULTS = "calibration_finds_faults.py"  # whose genes are seen where no simulator would put them
EFFECTS_ON_COUNTS = (
    "effects_methods.py",
    "effects_size.py",
    "sv_expression.py",
    "variance_components.py",
)  # of expression: no simulator has such donors and fields


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_no_study_draws_counts_itself(path):
    if path.name in (MAKES_FAULTS, *EFFECTS_ON_COUNTS, Path(__file__).name):
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    named = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}
    assert named & DRAWS_COUNTS == set(), "use the simulators of pyrosplice.data"


@pytest.mark.slow
@pytest.mark.parametrize("truth", ["none", "field", "domains", "gradient", "hot-spot", "stripes", "ring"])
def test_shapes_are_in_the_usage(truth):
    """Between spots, log ratios vary by the noise (.5² a logit) and by the pattern (mean square 1)."""
    cell = Cell("shapes", truth, 0.0 if truth == "none" else 1.0, side=8, depth=100_000, covered=64)
    counts = simulate(cell, 60, seed=1).numpy()
    logits = np.log(counts[..., :2] / counts[..., 2:])
    assert logits.var(1).mean() == pytest.approx(0.25 + cell.effect, rel=0.1)
    assert np.isfinite(logits).all()


@pytest.mark.slow
def test_spots_are_covered_as_the_cell_says():
    cell = COVERED[0]
    totals = simulate(cell, 5, seed=0).sum(-1)
    assert ((totals > 0).sum(1) == cell.covered).all()
    assert set(totals.flatten().tolist()) == {0, cell.depth}
    assert abs(float(simulate(SHAPES[0], 20, seed=0).sum(-1).mean()) - SHAPES[0].depth) < 0.1
    assert all(cell.effect == 0 for cell in nulls(SHAPES)) and len(nulls(SHAPES)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("cell", [c for _, c in sv_coverage.cells() if c.layout in ("grid 8", "grid 12")], ids=str)
def test_few_spots_and_uneven_totals_keep_the_level(cell):
    pvalue = sv_coverage.pvalues(cell, 300, seed=4).numpy()
    low, high = binom.ppf([0.0005, 0.9995], 300, 0.1)
    tested = np.isfinite(pvalue)
    assert tested.mean() > 0.5
    assert (pvalue[tested] < 0.1).sum() <= high
    if tested.all() and (cell.covered or 144) >= 60:
        assert (pvalue < 0.1).sum() >= low


@pytest.mark.slow
def test_donors_and_small_groups_keep_the_level_where_tests_know_of_them():
    most = binom.ppf(0.9995, 60, 0.05) / 60
    rows = expression_small_groups.donors(60, 1, {"6 equal": expression_small_groups.DONORS["6 equal"]})
    assert len(rows) == 2 * 3 * 2
    rows += expression_small_groups.groups(60, 1, expression_small_groups.GROUPS[-1:])
    assert all(row["tested"] >= 55 and row["at 5.0%"] <= most for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1.0, 5.0])
def test_genes_of_the_posterior_studies_have_the_stated_depth(depth):
    model = laplace_nuts.model_of(20, depth)
    totals = model.counts.sum(-1)
    assert float(totals.mean()) == pytest.approx(depth, abs=0.1)
    assert bool((totals == depth).all()) == (depth >= 5)
    beta = model.beta.detach()[:, 0].mean(0)
    assert abs(float(beta[0]) - 0.5) < 0.2 and abs(float(beta[1]) + 0.3) < 0.2
