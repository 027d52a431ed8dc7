"""What a file names is one of a known set, checked before it is made; nothing else that it names is ever called."""

import json
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyrosplice import SplisosmGLMM
from pyrosplice._io.archive import Archive
from pyrosplice._io.codec import pack
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import ModelFileError
from pyrosplice.likelihoods import DirichletMultinomial, Multinomial
from pyrosplice.spatial.car import CarCovariance

NO_PRIORS = [
    *("enable_validation", "validation_enabled", "constraints", "kl_divergence", "biject_to", "transforms", "__name__"),
    *(
        "__builtins__",
        "eval",
        "os.system",
        "torch",
        "Normal.expand",
        "ndarray",
        "",
        "normal",
        "NoSuch",
        "TorchDistributionMixin",
    ),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "model"
    model = SplisosmGLMM("glm", priors={"beta": dist.Normal(0.0, 1.0)})
    model.setup_data(simulate_isoforms(n_spots=16, n_genes=1, seed=0))
    model.save(path)
    return path


def crafted(path, change):
    """A copy of the file with its JSON changed, and valid checksums."""
    archive = Archive.load(path, "SplisosmGLMM")
    content = json.loads(json.dumps(archive.content))
    change(content)
    other = path.with_name("crafted")
    Archive(archive.kind, content, archive.tensors).save(other)
    return other


def refused(path):
    on = torch.distributions.Distribution._validate_args
    with pytest.raises(ModelFileError):
        SplisosmGLMM.load(path)
    assert torch.distributions.Distribution._validate_args is on


@given(
    name=st.sampled_from(NO_PRIORS) | st.none() | st.integers() | st.lists(st.text(max_size=2), max_size=1),
    arguments=st.dictionaries(st.sampled_from(["loc", "scale", "is_validate", "value", "self"]), st.integers(0, 1)),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_prior_that_is_no_distribution(saved, name, arguments):
    stored = pack({"class": name} | arguments, Any, "", {})
    refused(crafted(saved, lambda content: content["extensions"]["priors"]["beta"].update(content=stored)))


@pytest.mark.parametrize(
    "prior",
    [
        {"class": "Normal", "loc": 0.0},
        {"class": "Normal", "loc": "x", "scale": 1.0},
        {"class": "Normal", "loc": 0.0, "scale": -1.0},
        {"class": "Normal", "loc": 0.0, "scale": 1.0, "validate_args": 0.0},
        {"class": "Independent", "base_distribution": 0.0},
        {"class": "SpatialShare", "distance": [1.0]},
        {"class": "Rejector"},
    ],
)
def test_a_prior_that_cannot_be_made(saved, prior):
    stored = pack(prior, Any, "", {})
    refused(crafted(saved, lambda content: content["extensions"]["priors"]["beta"].update(content=stored)))


@pytest.mark.parametrize(
    "stored",
    [
        {"class": "Likelihood"},
        {"class": "print"},
        {"class": "Multinomial", "arguments": {"x": 1}},
        {"class": "DirichletMultinomial", "arguments": {"concentration": "1"}},
        {"class": None},
    ],
)
def test_a_likelihood_that_is_none(saved, stored):
    stored = pack(stored, Any, "", {})
    refused(crafted(saved, lambda content: content["extensions"]["likelihood"].update(content=stored)))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("options"),
        lambda content: content["options"].update(no_such_option=1),
        lambda content: content["options"].update(model_type="print"),
        lambda content: content["data"].pop("columns"),
        lambda content: content.update(extensions=3),
    ],
    ids=["no options", "unknown option", "wrong option", "no columns", "no extensions"],
)
def test_damaged_files(saved, change):
    refused(crafted(saved, change))


def test_the_file_as_it_was(saved):
    model = SplisosmGLMM.load(crafted(saved, lambda _: None))
    assert model.priors["beta"].scale == 1.0


def test_a_class_of_the_same_name_is_not_the_shipped_one(tmp_path):
    own = type(
        "CarCovariance", (CarCovariance,), {"dense": lambda self: 0.5 + 0.5 * torch.eye(16, dtype=torch.float64)}
    )
    adata = simulate_isoforms(n_spots=16, n_genes=1, seed=0)
    model = SplisosmGLMM("glmm-full", likelihood=DirichletMultinomial())
    model.setup_data(adata, covariance=own(adata.obsp["connectivities"]))
    model.save(tmp_path / "model")
    with pytest.raises(ModelFileError, match="own CarCovariance"):
        SplisosmGLMM.load(tmp_path / "model")
    with pytest.raises(ModelFileError, match="saved with DirichletMultinomial"):
        SplisosmGLMM.load(tmp_path / "model", likelihood=Multinomial(), covariance=model.sp_kernel)
    assert SplisosmGLMM.load(tmp_path / "model", covariance=model.sp_kernel).sp_kernel is model.sp_kernel
