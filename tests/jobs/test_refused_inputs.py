"""What the command line is given is used, or refused before anything is fitted; what it reads stays as it is."""

import hashlib
import json

import anndata
import numpy as np
import pandas as pd
import pytest

from pyrosplice import spatially_variable_genes
from pyrosplice._jobs import expression_job, states_job, usage_job
from pyrosplice._jobs.command_line import run_command
from pyrosplice.api import utils
from pyrosplice.data import simulate_expression, simulate_isoforms

FAST = ["--no-figures", "--quiet"]
ANSWER = ["--formula", "~ condition", "--test", "condition"]


@pytest.fixture
def cells():
    """Cells of two conditions with numbers, labels and places."""
    obs = pd.DataFrame({"condition": np.tile(["b", "a"], 30), "donor": np.repeat(list("pqrstu"), 10)})
    obs["age"], obs["batch"] = np.linspace(0, 1, 60), np.arange(60) % 2
    obs.index = [f"cell {i}" for i in range(60)]
    adata = simulate_expression(obs, n_genes=3, mean=6.0, seed=0)
    adata.var["symbol"] = ["A", "B", "C"]
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(60, 2))
    return adata


@pytest.fixture
def unfitted(monkeypatch):
    """Fail where a fit begins."""

    def fitted(*_, **__):
        raise AssertionError("a fit began")

    monkeypatch.setattr(expression_job, "fit_expression", fitted)
    monkeypatch.setattr(usage_job, "_prepared", fitted)
    monkeypatch.setattr(states_job, "fit_states", fitted)


def told(capsys, path, job, *words):
    """What is said of a run that is refused and leaves nothing."""
    out = path.parent / "out"
    assert run_command([job, str(path), "--out", str(out), *FAST, *words]) == 1
    assert not out.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reference", "nowhere=a"], "--reference: expected a column of obs"),
        (["--reference", "donor=q"], "--reference: expected a column of labels in the formulas, .*'donor'"),
        (["--reference", "batch=1", "--as-numeric", "batch", "--scale-formula", "~ batch"], "--reference.*'batch'"),
        (["--as-numeric", "age"], "--as-numeric: expected a column of the formulas, .*'age'"),
        (["--as-numeric", "nowhere"], "--as-numeric: expected a column of obs"),
    ],
)
@pytest.mark.usefixtures("unfitted")
def test_columns_of_expression_are_used_or_refused(cells, tmp_path, capsys, words, said):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    error = told(capsys, tmp_path / "cells.h5ad", "expression", *ANSWER, *words)
    assert pd.Series([error]).str.contains(said).all()


@pytest.mark.parametrize("words", [["--covariate", "lab"], ["--formula", "~ lab"], []])
@pytest.mark.usefixtures("unfitted")
def test_labels_of_usage_are_used_or_refused(tmp_path, capsys, words):
    adata = simulate_isoforms(n_spots=36, n_genes=2, covariates=("iid",), seed=0)
    adata.obs["lab"] = pd.Categorical(np.where(np.arange(36) % 3 == 0, "x", "y"))
    adata.write_h5ad(tmp_path / "spots.h5ad")
    assert "--as-label: expected a column of" in told(
        capsys, tmp_path / "spots.h5ad", "usage", *words, "--as-label", "iid"
    )


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
@pytest.mark.parametrize(
    ("which", "words"), [("var", []), ("var", ["--gene-key", "symbol"]), ("obs", ["--write-h5ad"])]
)
@pytest.mark.usefixtures("unfitted")
def test_names_that_stand_twice_are_refused_before_a_fit(cells, tmp_path, capsys, which, words):
    names = f"{which}_names"
    setattr(cells, names, ["same", "same", *getattr(cells, names)[2:]])
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert "'same'" in told(capsys, tmp_path / "cells.h5ad", "expression", *ANSWER, *words)


@pytest.mark.parametrize("kind", ["number", "fraction", "category", "text"])
def test_genes_are_those_of_any_kind_of_column(tmp_path, kind):
    adata = simulate_isoforms(n_spots=36, n_genes=3, covariates=("iid",), seed=0)
    codes = pd.factorize(adata.var["gene_symbol"])[0]
    given = {"number": codes, "fraction": codes + 0.5, "category": pd.Categorical(codes), "text": codes.astype(str)}
    adata.var["gene_symbol"] = given[kind]
    adata.write_h5ad(tmp_path / "spots.h5ad")
    words = ["usage", tmp_path / "spots.h5ad", "--covariate", "iid", "--out", tmp_path / "out", *FAST]
    assert run_command([str(word) for word in words]) == 0
    effects = pd.read_csv(tmp_path / "out" / "effects.csv", dtype={"gene": str})
    expected = dict(zip(adata.var_names, adata.var["gene_symbol"].astype(str), strict=True))
    assert effects.set_index("isoform")["gene"].to_dict() == expected


def test_cells_without_a_label_are_left_out_of_the_test_in_space_too(cells, tmp_path):
    cells.obs["condition"] = cells.obs["condition"].where(np.arange(60) != 7)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    words = ["expression", tmp_path / "cells.h5ad", *ANSWER, "--missing", "drop", "--spatial-key", "spatial"]
    assert run_command([str(word) for word in [*words, "--out", tmp_path / "out", *FAST]]) == 0
    used = np.arange(60) != 7
    expected = spatially_variable_genes(
        cells[used].copy(), formula="~ condition", size_factors=utils.normed_sum(cells)[used]
    )
    written = pd.read_csv(tmp_path / "out" / "spatial_variability.csv", index_col="gene")
    np.testing.assert_allclose(written["pvalue"], expected.loc[written.index, "pvalue"], rtol=1e-8)


@pytest.mark.parametrize("name", ["annotated.h5ad", "fitted_ratios.h5ad", "listed.h5ad"])
@pytest.mark.usefixtures("unfitted")
def test_a_file_that_would_be_replaced_is_not_read(cells, tmp_path, capsys, name):
    cells.write_h5ad(tmp_path / name)
    (tmp_path / "run.json").write_text(json.dumps({"files": ["listed.h5ad", "run.json"]}), encoding="utf-8")
    before = hashlib.sha256((tmp_path / name).read_bytes()).digest()
    words = ["expression", str(tmp_path / name), *ANSWER, "--out", str(tmp_path), "--force", *FAST]
    assert run_command(words) == 1
    assert f"has the data that are read, '{name}'" in capsys.readouterr().err
    assert hashlib.sha256((tmp_path / name).read_bytes()).digest() == before


@pytest.mark.parametrize("inside", [".", "results"])
@pytest.mark.usefixtures("unfitted")
def test_a_zarr_folder_is_not_written_into(cells, tmp_path, capsys, inside):
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "cells.zarr"
    zarr.open_group(path, mode="w")
    held = sorted(tmp_path.rglob("*"))
    words = ["expression", str(path), *ANSWER, "--out", str(path / inside), "--force", *FAST]
    assert run_command(words) == 1
    assert "is in the data that are read" in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == held


def test_a_file_beside_the_results_may_be_read(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    words = ["expression", str(tmp_path / "cells.h5ad"), *ANSWER, "--out", str(tmp_path), "--force", *FAST]
    assert run_command(words) == 0 and run_command(words) == 0
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").shape == cells.shape
