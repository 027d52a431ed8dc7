"""The demo goes from nothing, or from a file, to tables and figures."""

import anndata
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from pyrosplice import SplisosmGLMM, demo
from tests.test_report import PageReader

SMALL = ["--n-spots", "144", "--n-genes", "8", "--batch-size", "8"]


@pytest.fixture(autouse=True)
def _headless(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert demo.main(["--output", str(folder), *SMALL, "--quiet"]) == 0
    return folder


@pytest.mark.slow
def test_simulated_tissue_leaves_every_table(simulated):
    sv = pd.read_csv(simulated / "spatial_variability.csv")
    du = pd.read_csv(simulated / "differential_usage.csv")
    assert list(sv.columns) == ["gene", "statistic", "pvalue", "pvalue_adj", "reason"]
    assert len(sv) == 8 and len(du) == 16
    assert set(du["covariate"]) == {"smooth", "iid"}
    genes = pd.read_csv(simulated / "genes.csv")
    assert genes["converged"].all() and genes["theta"].between(0, 1).all()
    assert len(list(simulated.glob("*.png"))) == 9


def test_estimates_stand_beside_their_own_truth(simulated):
    effects = pd.read_csv(simulated / "recovered_effect.csv")
    assert len(effects) == 8 * 2 * 2  # genes, covariates, free isoforms
    assert set(effects["truth"].abs()) == {0.0, 0.5}
    assert set(effects.loc[effects["covariate"] == "iid", "truth"]) == {0.0}
    assert (effects["estimate"] - effects["truth"]).abs().median() < 0.15
    assert np.corrcoef(effects["estimate"], effects["truth"])[0, 1] > 0.7
    theta = pd.read_csv(simulated / "recovered_theta.csv")
    assert theta["truth"].tolist() == [0.0, 0.3, 0.7, 1.0] * 2


def test_saved_model_and_ratios_are_the_fitted_ones(simulated):
    ratios = anndata.read_h5ad(simulated / "fitted_ratios.h5ad")
    usage = ratios.layers["fitted_ratios"].reshape(144, 8, 3)
    np.testing.assert_allclose(usage.sum(-1), 1)
    again = SplisosmGLMM.load(simulated / "model.pyrosplice")
    stored = pd.read_csv(simulated / "spatial_variability.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(again.get_formatted_test_results("sv"), stored, check_exact=False, rtol=1e-12)


def test_the_page_explains_every_picture_and_links_only_files_beside_it(simulated):
    page = PageReader((simulated / "index.html").read_text(encoding="utf-8"))
    assert len(page.of("img")) == len(list(simulated.glob("*.png"))) == 9
    assert all(len(image["alt"]) > 20 for image in page.of("img"))
    assert len(page.of("figcaption")) == 9 + 4  # a table of fits, of tests in space and of covariates, of errors
    links = [link["href"] for link in page.of("a")]
    assert all(href.startswith("#section-") or (simulated / href).is_file() for href in links)
    low = pd.read_csv(simulated / "recovered_sigma.csv")
    assert (low["estimate"] - low["truth"]).mean() < 0 and "σ is a little low because" in page.text


def test_a_file_without_coordinates_is_tested_for_differential_usage_only(tmp_path, capsys):
    adata = demo.simulated_tissue(n_spots=144, n_genes=6, seed=3)
    adata.obsm.clear()
    adata.obs["type"] = pd.Categorical(np.where(adata.obs["smooth"] > 0, "a", "b"))
    del adata.uns["truth"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    words = ["--output", str(tmp_path / "out"), "--data", str(tmp_path / "cells.h5ad"), "--covariates", "smooth"]
    assert demo.main(words) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "genes.csv",
        "differential_usage.csv",
        "effects.csv",
        "usage_points.csv",
        "fitted_ratios.h5ad",
        "model.pyrosplice",
        "differential_usage_qq.png",
        "volcano_smooth.png",
        "index.html",
        "run.json",
    }
    told = capsys.readouterr().out
    assert "6 genes, 6 converged" in told and "Without coordinates" in told
    assert "Differential usage with smooth (score test):" in told


def test_strongest_effect_does_not_depend_on_the_reference():
    effect = np.array([1.0, -0.2, 0.0])
    tables = [
        demo.strongest_effect(
            pd.DataFrame({"gene": "g", "covariate": "x", "isoform": list("abc"), "effect": effect - effect[reference]})
        )
        for reference in range(3)
    ]
    for table in tables:
        assert table["isoform"].tolist() == ["a"]
        assert table["effect"].iloc[0] == pytest.approx(1.0 - 0.8 / 3)


def test_report_names_the_covariates_with_the_most_discoveries():
    table = pd.DataFrame({"covariate": list("abab"), "pvalue_adj": [0.5, 0.01, 0.9, 0.04]})
    assert demo.discoveries(table).to_dict() == {"b": 2, "a": 0}


def test_missing_file_is_refused_before_any_work(tmp_path, capsys):
    assert demo.main(["--output", str(tmp_path / "out"), "--data", str(tmp_path / "none.h5ad")]) == 1
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
