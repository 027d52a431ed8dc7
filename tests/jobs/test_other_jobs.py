"""The jobs of expression and of cell states leave what the library's own calls on the same data give."""

import html
import json
import os
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest

from pyrosplice import AnnData_TripletDataset, ExpressionGLM, fit_gmm, mixture_table, patient_distances
from pyrosplice._jobs.command_line import run_command
from pyrosplice.api import utils
from pyrosplice.data import simulate_expression
from tests.paths import ROOT
from tests.test_report import PageReader

FAST = ["--no-figures", "--quiet"]
ANSWER = ["expression", "--formula", "~ condition", "--test", "condition"]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A file of 120 cells of three patients and a representation of two states."""
    obs = pd.DataFrame({"condition": np.tile(["b", "a"], 60), "patient": np.repeat(["P 1", "P/2", "p 1"], 40)})
    obs.index = [f"cell {i}" for i in range(120)]
    adata = simulate_expression(obs, n_genes=5, mean=6.0, seed=0)
    adata.var["symbol"] = [f"S{i}" for i in range(5)]
    rng = np.random.default_rng(0)
    adata.obsm["X_pca"] = rng.normal(size=(120, 2)) + 6 * (np.arange(120) % 2)[:, None]
    adata.obsm["spatial"] = rng.uniform(size=(120, 2))
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def test_expression_is_that_of_the_library(cells, tmp_path):
    out = tmp_path / "out"
    words = ["expression", cells, "--formula", "~ condition", "--test", "condition", "--reference", "condition=b"]
    words += ["--gene-key", "symbol", "--method", "lrt", "--spatial-key", "spatial", "--write-h5ad", "--out", out]
    assert run_command([str(word) for word in [*words, *FAST]]) == 0
    adata = anndata.read_h5ad(cells)
    adata.obs["condition"] = pd.Categorical(adata.obs["condition"].astype(str), ["b", "a"])
    model = ExpressionGLM("~ condition", "~ 1").fit(adata, size_factors=utils.normed_sum(adata))
    written, expected = pd.read_csv(out / "test_condition.csv"), model.test(factor="condition", method="lrt").to_frame()
    assert written["symbol"].tolist() == [f"S{i}" for i in range(5)]
    for name in ("log2fc", "pvalue", "pvalue_adj"):
        np.testing.assert_allclose(written[name], expected[name], rtol=1e-8)
    assert len(pd.read_csv(out / "spatial_variability.csv")) == 5
    assert ExpressionGLM.load(out / "model.pyrosplice").coefficient_names == ["Intercept", "condition[T.a]"]
    assert anndata.read_h5ad(out / "annotated.h5ad").shape == adata.shape


def test_states_are_those_of_the_library(cells, tmp_path):
    out = tmp_path / "out"
    words = ["states", cells, "--patient-key", "patient", "--components", "2", "--write-h5ad", "--out", out]
    assert run_command([str(word) for word in [*words, *FAST]]) == 0
    dataset = AnnData_TripletDataset(anndata.read_h5ad(cells), "patient", "patient", n_cells=1, use_rep="X_pca")
    fit_gmm(dataset, k_comps=2, verbose=False)
    written, expected = pd.read_csv(out / "components.csv"), mixture_table(dataset.gmm)
    np.testing.assert_allclose(written["mean"], expected["mean"], rtol=1e-8)
    distances = pd.read_csv(out / "distances.csv", index_col="patient")
    np.testing.assert_allclose(distances, patient_distances(dataset), atol=1e-8)
    assert len(pd.read_csv(out / "cells.csv")) == 120
    assert "states" in anndata.read_h5ad(out / "annotated.h5ad").uns


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--components", "2"], "All fits converged."),
        (["--components", "4", "--max-iter", "1"], "3 of 3 fits did not converge: ['P 1', 'P/2', 'p 1'] (max_epochs"),
        (["--components", "4", "--max-iter", "1", "--sharing", "global"], "1 of 1 fits did not converge: ['all"),
    ],
)
def test_the_page_says_how_the_fits_ended(cells, tmp_path, options, told):
    words = ["states", cells, "--patient-key", "patient", *options, "--out", tmp_path / "out", *FAST]
    assert run_command([str(word) for word in words]) == 0
    page = html.unescape((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert told in page and ("--max-iter more" in page) == ("--max-iter" in options)


def test_the_page_says_which_patients_have_too_few_cells(cells, tmp_path):
    adata = anndata.read_h5ad(cells)
    adata.obsm["X_pca"][:40] = adata.obsm["X_pca"][0]  # the first patient's cells are one point
    adata.write_h5ad(tmp_path / "cells.h5ad")
    words = ["states", tmp_path / "cells.h5ad", "--patient-key", "patient", "--components", "2", "--prior", "pooled"]
    assert run_command([str(word) for word in [*words, "--out", tmp_path / "out", *FAST]]) == 0
    page = html.unescape((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert "1 of 3 fits did not converge: ['P 1'] (few_cells" in page and "Give fewer --components" in page


@pytest.mark.parametrize(
    "words", [[*ANSWER, "--spatial-key", "spatial"], ["states", "--patient-key", "patient", "--components", "1-2"]]
)
def test_parquet_has_what_csv_has(cells, tmp_path, words):
    pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    assert run_command([words[0], str(cells), *words[1:], "--parquet", "--out", str(out), *FAST]) == 0
    tables = sorted(out.glob("*.csv"))
    assert tables and {path.stem for path in tables} == {path.stem for path in out.glob("*.parquet")}
    for path in tables:
        written, table = pd.read_parquet(path.with_suffix(".parquet")), pd.read_csv(path, keep_default_na=False)
        assert list(written) == list(table) and len(written) == len(table)
        for name in table:
            numbers = pd.api.types.is_numeric_dtype(written[name]) and written[name].dtype != bool
            if numbers:
                np.testing.assert_allclose(pd.to_numeric(table[name], errors="coerce"), written[name], rtol=1e-12)
            else:
                assert written[name].astype(str).tolist() == table[name].astype(str).tolist(), (path, name)


@pytest.mark.parametrize("components", ["2", "1-3"])
def test_states_without_patients_are_one_mixture_of_all_cells(cells, tmp_path, components):
    words = ["states", str(cells), "--components", components, "--out", str(tmp_path / "out"), *FAST]
    assert run_command(words) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["settings"]["n_components"] == {"all": 2}
    assert (tmp_path / "out" / "selection.csv").exists() == (components != "2")
    PageReader((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["states", "--components", "2", "--use-rep", "umap"], "--use-rep: expected one of"),
        (["states", "--components", "2", "--folds", "5"], "--select, --folds"),
        (["states", "--components", "1-2", "--folds", "5", "--select", "bic"], "--select, --folds"),
        (["states", "--components", "2", "--label-key", "condition"], "--label-key"),
        (["states", "--components", "2", "--patient-key", "donor"], "--patient-key: expected a column of obs"),
        (["states", "--components", "99", "--patient-key", "patient"], "99"),
        (["expression", "--formula", "~ condition", "--test", "age"], "age"),
        (["expression", "--formula", "~ age", "--test", "age"], "age"),
        (
            [*ANSWER, "--reference", "condition=c"],
            "--reference",
        ),
        ([*ANSWER, "--donors", "patient"], "donors"),
        (
            [*ANSWER, "--section-key", "patient"],
            "--section-key",
        ),
        (
            [*ANSWER, "--size-factors", "depth"],
            "--size-factors",
        ),
        ([*ANSWER, "--as-numeric", "age"], "--as-numeric"),
    ],
)
def test_what_cannot_be_is_refused(cells, tmp_path, capsys, words, said):
    job, *rest = words
    assert run_command([job, str(cells), *rest, "--out", str(tmp_path / "out"), *FAST]) == 1
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["expression", "--formula", "~ condition + (1 | patient)", "--test", "condition", "--write-h5ad"],
        ["states", "--patient-key", "patient", "--components", "1-3", "--write-h5ad"],
    ],
)
def test_a_program_draws_without_a_screen(cells, tmp_path, words):
    job, *rest = words
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MPLBACKEND", None)
    program = [sys.executable, "-m", "pyrosplice", job, str(cells), *rest, "--out", "out"]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    page = PageReader((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    pictures = list((tmp_path / "out").glob("*.png"))
    assert pictures and len(page.of("img")) == len(pictures)
