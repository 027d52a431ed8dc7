import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pyrosplice import ExpressionGLM, GaussianMixture
from pyrosplice.errors import ModelFileError
from pyrosplice.estimators.splisosm import SplisosmGLMM
from pyrosplice.io import FORMAT_VERSION, load_archive, save_archive


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
    assert again._options() == model._options()
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


def test_the_file_is_safetensors_and_no_pickle(tissue, tmp_path):
    saved(tissue, tmp_path / "model")
    raw = (tmp_path / "model").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])["__metadata__"]
    assert header["format"] == "pyrosplice"
    assert header["kind"] == "SplisosmGLMM"
    assert header["format_version"] == str(FORMAT_VERSION)
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def short(path):
    path.write_bytes(b"abc")


def foreign(path):
    save_file({"a": torch.zeros(3)}, path)


def text(path):
    path.write_text("gene,count\n" * 1000)


def newer(path):
    raw = path.read_bytes()
    old, new = (b'"format_version":"%d"' % v for v in (FORMAT_VERSION, 9))
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, new))


def other_kind(path):
    save_archive(path, kind="Mixture", tensors={"a": torch.zeros(2)}, content={})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, "truncated"),
        (short, "truncated"),
        (text, "truncated or no pyrosplice file"),
        (foreign, "not written by pyrosplice"),
        (newer, "format version 9.*reads up to 1"),
        (other_kind, "holds a Mixture; expected a SplisosmGLMM"),
    ],
)
def test_a_file_that_is_not_ours_is_named(tissue, tmp_path, spoil, message):
    path = tmp_path / "model"
    saved(tissue, path)
    spoil(path)
    with pytest.raises(ModelFileError, match=message):
        SplisosmGLMM.load(path)


@pytest.mark.parametrize("family", [SplisosmGLMM, ExpressionGLM, GaussianMixture])
def test_a_path_without_a_file_is_named(family, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none", tmp_path / "folder"):
        with pytest.raises(FileNotFoundError, match=str(path)) as raised:
            family.load(path)
        assert isinstance(raised.value, ModelFileError)


def test_archives_keep_dtypes_values_and_json(tmp_path):
    tensors = {"a": torch.arange(6).reshape(2, 3).T, "b": torch.tensor([1.0, np.nan], dtype=torch.float64)}
    save_archive(tmp_path / "x", kind="thing", tensors=tensors, content={"n": 1, "names": ["α"], "none": None})
    again, content = load_archive(tmp_path / "x", kind="thing")
    assert content == {"n": 1, "names": ["α"], "none": None}
    assert torch.equal(again["a"], tensors["a"])
    torch.testing.assert_close(again["b"], tensors["b"], equal_nan=True)
