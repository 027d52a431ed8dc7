"""Short versions of the study of spatially variable genes: sizes that break easily, and power beside rivals."""

import numpy as np
import pytest

from pyrosplice import ExpressionGLM
from pyrosplice.spatial._graph import knn_graph
from tests.studies.sv_expression import Cell, null_pvalues, patterned
from tests.studies.sv_rivals import RIVALS

CELLS = [
    Cell("scattered 60", 2.0, "nb 0.3", 0.7),
    Cell("grid 144", 0.1, "poisson", 1.5),
    Cell("grid 144", 0.3, "zeros", 1.5),
    Cell("grid 144", 20.0, "lognormal", 0.7),
    Cell("grid 144", 2.0, "nb 1", 0.7, "covariate"),
    Cell("grid 144", 0.3, "nb 1", 0.7, "spatial sizes"),
    Cell("grid 144", 2.0, "nb 1", 1.5, "sections"),
]


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: " ".join(map(str, cell)))
def test_null_genes_are_rejected_as_often_as_they_should(cell):
    pvalue = null_pvalues(cell, 1_000, seed=1)
    pvalue = pvalue[np.isfinite(pvalue)]
    assert len(pvalue) > 500
    assert (pvalue < 0.05).mean() == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / len(pvalue)))
    assert (pvalue < 0.5).mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / len(pvalue)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["field", "domains", "gradient", "hot-spot"])
def test_no_rival_finds_more(shape):
    adata, size = patterned(shape, 2.0, 16, 200, seed=2)
    points = adata.obsm["spatial"]
    ours = ExpressionGLM("~ 1").fit(adata, size_factors="size").test_spatial_variability()["pvalue"].to_numpy() < 0.05
    for name, rival in RIVALS.items():
        theirs = rival(adata.X, size, points, knn_graph(points, k_neighbors=6, graph="union")) < 0.05
        difference = ours.astype(float) - theirs
        assert difference.mean() > -3 * difference.std() / np.sqrt(200), name


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
def test_rivals_are_what_they_say(name):
    adata, size = patterned("none", 2.0, 16, 400, seed=3)
    graph = knn_graph(adata.obsm["spatial"], k_neighbors=6, graph="union")
    pvalue = RIVALS[name](adata.X, size, adata.obsm["spatial"], graph)
    assert (pvalue < 0.05).mean() < 0.09 and np.isfinite(pvalue).all()
