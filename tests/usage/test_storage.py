import pytest
import torch

from pyrosplice.usage.analysis.splisosm import SplisosmGLMM


def saved(tissue, path, model_type="glm", **setup):
    model = SplisosmGLMM(model_type, rho=0.95, fitting_configs={"max_epochs": 40})
    model.setup_data(tissue, gene_names="label", **setup)
    model.fit(print_progress=False, with_design_mtx="design_mtx" in setup, from_null=model_type == "glmm-full")
    model.save(path)
    return model


@pytest.mark.parametrize("model_type", ["glm", "glmm-null", "glmm-full"])
def test_everything_but_the_given_anndata_comes_back(tissue, tmp_path, model_type):
    model = saved(tissue, tmp_path / "model.pt", model_type, design_mtx=["iid", "half"])
    again = SplisosmGLMM.load(tmp_path / "model.pt")
    assert again.adata is None
    assert repr(again) == repr(model)
    assert again.analysis.options.saved() == model.analysis.options.saved()
    assert again.get_training_summary().equals(model.get_training_summary())
    assert again.filtered_adata.var.equals(model.filtered_adata.var)
    assert (again.filtered_adata.layers["counts"] != model.filtered_adata.layers["counts"]).nnz == 0
    for a, b in zip(again.get_fitted_models(), model.get_fitted_models(), strict=True):
        assert torch.equal(a.get_isoform_ratio(), b.get_isoform_ratio())
    if model_type == "glmm-full":
        assert (again.sp_kernel.precision != model.sp_kernel.precision).nnz == 0


def test_a_loaded_model_takes_new_data_and_fits(tissue, tmp_path):
    saved(tissue, tmp_path / "model")
    again = SplisosmGLMM.load(tmp_path / "model", map_location="cpu")
    again.setup_data(tissue)
    again.fit(print_progress=False)
    assert again.gene_names[0] == "gene_1"
    assert again.adata is tissue


def test_an_unfitted_model_can_be_saved(tissue, tmp_path):
    model = SplisosmGLMM()
    model.setup_data(tissue)
    model.save(tmp_path / "model")
    assert SplisosmGLMM.load(tmp_path / "model").n_genes == 6
