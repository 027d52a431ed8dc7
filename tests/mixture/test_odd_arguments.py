"""Odd values of every argument of the mixtures: right, or refused by an error that names the argument."""

import inspect

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError

from pyrosplice import (
    AnnData_TripletDataset,
    GaussianMixture,
    GaussianMixtureModel,
    GaussianMixtureModelConfig,
    TripletDataset,
    evaluate_holdout_nll,
    fit_gmm,
    summarize_holdout_nll,
    validate_gmm,
)
from pyrosplice.errors import InvalidArgumentError
from tests.mixture.helpers import clouds

X = clouds(60, 2, 2, spread=6)[0]
LABELS = {"patient": list("abcd") * 15, "group": list("uuvv") * 15}
CELLS = anndata.AnnData(X, obs=pd.DataFrame(LABELS, index=[f"c{i}" for i in range(60)]))
OF_PATIENTS = {"patient_col": "patient", "label_col": "group", "n_cells": 10}
ODD = {
    "NaN": float("nan"),
    "text": "foo",
    "bytes": b"x",
    "array": np.array([1, 2, 3]),
    "matrix": np.array([[1.0]]),
    "no array": np.array([]),
    "names": ["a", None],
    "dictionary": {"a": 1},
    "object": object(),
    "class": int,
    "complex": 1j,
    "large": 10**30,
    "Series": pd.Series([1, 2]),
    "table": pd.DataFrame({"a": [1.0]}),
    "missing": pd.NA,
    "set": {1},
    "tensor": torch.tensor(2.0),
    "tensors": torch.tensor([1.0, 2.0]),
    "NumPy's": np.int64(2),
    "none": [],
}
MIXTURE = GaussianMixture(2, random_state=0).fit(X)


def fitted_patients():
    data = AnnData_TripletDataset(CELLS.copy(), **OF_PATIENTS)
    return fit_gmm(data, k_comps=[1, 2], k_selection_metric="heldout_nll", gmm_key="g", verbose=False)


PATIENTS = fitted_patients()
RESULTS = evaluate_holdout_nll(PATIENTS.adata, gmm_key="g", patient_col="patient", label_col="group")
CALLS = {
    "mixture": (lambda **given: GaussianMixture(**given).fit(X), GaussianMixture.__init__, {"num_components": 2}),
    "fit": (lambda **given: GaussianMixture(2).fit(**given), GaussianMixture.fit, {"X": X}),
    "predict": (MIXTURE.predict, GaussianMixture.predict, {}),
    "score": (MIXTURE.score, GaussianMixture.score, {}),
    "sample": (MIXTURE.sample, GaussianMixture.sample, {}),
    "posterior": (
        MIXTURE.posterior,
        GaussianMixture.posterior,
        {"X": X, "num_samples": 2, "num_chains": 1, "warmup_steps": 0},
    ),
    "set_params": (MIXTURE.clone().set_params, GaussianMixture.set_params, {}),
    "load": (GaussianMixture.load, GaussianMixture.load, {"path": "no such model"}),
    "config": (
        GaussianMixtureModelConfig,
        GaussianMixtureModelConfig.__init__,
        {"num_components": 2, "num_features": 2, "covariance_type": "full"},
    ),
    "module": (GaussianMixtureModel, GaussianMixtureModel.__init__, {}),
    "data set": (TripletDataset, TripletDataset.__init__, {"supports": [X] * 2, "distribution_labels": [0, 1]}),
    "patients": (AnnData_TripletDataset, AnnData_TripletDataset.__init__, {"adata": CELLS, **OF_PATIENTS}),
    "fit_gmm": (fit_gmm, fit_gmm, {"dataset": TripletDataset([X] * 2, [0, 1]), "k_comps": 2, "verbose": False}),
    "validate": (validate_gmm, validate_gmm, {"dataset": PATIENTS}),
    "evaluate": (
        evaluate_holdout_nll,
        evaluate_holdout_nll,
        {"adata": PATIENTS.adata, "gmm_key": "g", "patient_col": "patient"},
    ),
    "summarize": (summarize_holdout_nll, summarize_holdout_nll, {"results": RESULTS}),
}
WITHOUT_EFFECT = {"y", "self", "params"}
SIZES = {
    "num_components",
    "num_features",
    "n_init",
    "num_samples",
    "num_chains",
    "warmup_steps",
    "max_iter",
    "n_folds",
    "num_datapoints",
    "convergence_tolerance",
    "covariance_regularization",
    "tol",
    "eps",
}
ARGUMENTS = [
    (name, argument)
    for name, (_, described, _) in CALLS.items()
    for argument in inspect.signature(described).parameters
    if argument not in WITHOUT_EFFECT
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_every_odd_value_is_right_or_refused_by_name(name, argument):
    call, _, others = CALLS[name]
    for kind, value in ODD.items():
        if kind == "large" and argument in SIZES - {"convergence_tolerance"}:
            continue  # a machine with that much memory, or time, would do
        try:
            call(**{**others, argument: value})
        except (InvalidArgumentError, FileNotFoundError, NotFittedError) as error:
            also = {"distribution_labels": "supports", "identical_supports": "supports", "values": "set_params"}.get(
                argument, argument
            )
            assert argument in str(error) or also in str(error), (kind, str(error))


def test_the_module_names_what_it_was_given():
    with pytest.raises(InvalidArgumentError, match="config"):
        GaussianMixtureModel(None)
    for model in (MIXTURE.model_, torch.jit.script(MIXTURE.model_)):
        for wrong in (torch.zeros(3, 5), torch.zeros(2)):
            with pytest.raises(Exception, match=r"data: expected cells \(N, 2\)"):
                model(wrong)
        with pytest.raises(Exception, match="num_datapoints"):
            model.sample(0)


@pytest.mark.parametrize("path", [None, 3, 2.5, b"x", "", np.array([1])])
@pytest.mark.parametrize(
    "method", ["save", "load", "save_parameters", "load_parameters", "save_attributes", "load_attributes"]
)
def test_what_is_no_path_is_refused(path, method):
    with pytest.raises(InvalidArgumentError, match="path"):
        getattr(MIXTURE, method)(path)


def test_seeds_may_be_numpys():
    plain = fit_gmm(TripletDataset([X] * 2, [0, 1]), k_comps=2, random_state=2, verbose=False)
    other = fit_gmm(TripletDataset([X] * 2, [0, 1]), k_comps=2, random_state=np.int64(2), verbose=False)
    assert torch.equal(plain.supports, other.supports)
