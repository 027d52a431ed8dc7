"""What mixtures and their data sets say of themselves, before and after a fit, as text and as HTML."""

import copy
import pickle

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyrosplice import AnnData_TripletDataset, GaussianMixture, TripletDataset

EVIL = "<b>&\"'"


def cells(seed=0, n=60, features=2):
    return np.random.default_rng(seed).normal(size=(n, features)) + 6 * (np.arange(n)[:, None] % 2)


def test_a_mixture_is_its_call_and_once_fitted_how_that_went():
    mixture = GaussianMixture(2, random_state=0)
    call = "GaussianMixture(num_components=2, random_state=0)"
    assert repr(mixture) == call and "not fitted; call fit" in mixture._repr_html_()
    mixture.fit(cells())
    first, *rows = repr(mixture).split("\n")
    assert first == call
    assert [row.split()[0] for row in rows] == ["mixture", "weights", "fit"]
    assert "2 components, 2 features, diag covariances" in rows[0] and "0.5, 0.5" in rows[1]
    assert f"converged, {mixture.num_iter_} rounds" in rows[2] and f"{mixture.nll_:.6g}" in rows[2]
    assert repr(clone(mixture)) == call
    assert all(repr(twin) == repr(mixture) for twin in (copy.deepcopy(mixture), pickle.loads(pickle.dumps(mixture))))


def test_a_mixture_in_a_pipeline_is_one_line():
    assert repr(make_pipeline(StandardScaler(), GaussianMixture(2))).count("\n") == 1


def test_a_notebook_gets_both_forms():
    mixture = GaussianMixture(2, use_rep=EVIL)
    both = mixture._repr_mimebundle_()
    assert both == {"text/plain": repr(mixture), "text/html": mixture._repr_html_()}
    assert EVIL not in both["text/html"] and "&lt;b&gt;" in both["text/html"]


def test_many_components_are_listed_in_part():
    mixture = GaussianMixture(12, random_state=0).fit(cells(n=400))
    assert ", …" in repr(mixture) and max(map(len, repr(mixture).split("\n"))) < 160


def test_unfinished_and_failed_fits_say_so():
    assert "max_epochs, 1 rounds" in repr(GaussianMixture(2, trainer_params={"max_epochs": 1}).fit(cells()))
    assert "running" in repr(GaussianMixture(2, random_state=0).partial_fit(cells()).partial_fit(cells()))


@pytest.mark.parametrize("options", [{}, {"weights": [np.ones(60), np.ones(61)]}])
def test_a_data_set_has_its_classes_sizes_and_weights(options):
    data = TripletDataset([cells(0, 60), cells(1, 61)], ["b", "a"], **options)
    text = repr(data)
    assert "60 to 61 points each, 2 features" in text and "b (1), a (1)" in text
    assert ("given" if options else "uniform") in text
    data.fit_gmm(k_comps=2, verbose=False)
    assert "2 components (means and covariances) each" in repr(data)


def test_shared_points_are_said_to_be():
    data = TripletDataset(cells(), [0, 1, 1], weights=np.ones((3, 60)), identical_supports=True)
    assert "60 points, the same for all, 2 features" in repr(data) and "1 (2)" in repr(data)


def patients(names=("p", "q", "r"), key=None):
    x = np.concatenate([cells(seed) for seed in range(len(names))])
    obs = pd.DataFrame({"sample": np.repeat(names, 60), "patient_group": np.repeat(names, 60)})
    obs.index = obs.index.astype(str)
    adata = anndata.AnnData(x.astype(np.float32), obs=obs, obsm={"X_pca": x})
    return AnnData_TripletDataset(adata, n_cells=20, use_rep=key)


def test_patients_of_an_anndata_before_and_after_their_fit():
    data = patients(key="X_pca")
    text = repr(data)
    assert "180, features of obsm['X_pca']" in text and "obs['sample']: p, q, r" in text
    assert "20 points each" in text and "not fitted; call fit_gmm" in text
    data.fit_gmm(k_comps=[1, 2], k_selection_metric="bic", verbose=False)
    assert "uns['gmm_X_pca']: 2 components (3), chosen by bic" in repr(data)
    del data.adata.uns["gmm_X_pca"]
    assert "not in the AnnData any more" in repr(data)


def test_names_are_escaped_and_many_are_cut_with_their_number():
    data = patients(names=(EVIL, *(f"p{i}" for i in range(11))))
    assert "… (12 in all)" in repr(data)
    assert EVIL in repr(data) and EVIL not in data._repr_html_() and "&lt;b&gt;&amp;" in data._repr_html_()
