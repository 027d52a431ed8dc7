"""A number of components at the edge of the candidates is told: once, by name, and in what is stored."""

import warnings

import numpy as np
import pytest

from pyrosplice import GaussianMixture
from pyrosplice._mixture.patients.fit_gmm import fit_gmm
from pyrosplice._mixture.patients.selection import selection_table
from pyrosplice._mixture.patients.triplets import TripletDataset


def patients(numbers, *, seed=0):
    rng = np.random.default_rng(seed)
    x = [np.concatenate([rng.normal(12 * c, 1, (60, 2)) for c in range(k)]) for k in numbers]
    return TripletDataset(x, list(range(len(x))))


@pytest.mark.parametrize(
    ("candidates", "edge"),
    [([1, 2, 3], (False, True, False)), ([2, 3], (True, True, True)), ([1, 2, 3, 4], (False, False, False))],
)
@pytest.mark.parametrize("options", [{"k_selection_metric": "bic"}, {"n_folds": 3, "prior": "pooled"}])
def test_the_edge_is_told_and_stored(candidates, edge, options):
    dataset = patients((2, 3, 2))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit_gmm(dataset, k_comps=candidates, verbose=False, **options)
    chosen = np.asarray(dataset.gmm["distribution_n_components"])
    assert list(chosen) == [2, 3, 2] or "n_folds" in options
    stored = list(dataset.gmm["selection"]["at_edge_by_distribution"].values())
    assert stored == [k == max(candidates) or (k == min(candidates) and k > 1) for k in chosen]
    assert "n_folds" in options or tuple(stored) == edge
    assert len(told) == any(stored)
    if told:
        text = str(told[0].message)
        assert text.startswith(f"k_comps: the number of components chosen for {sum(stored)} of 3")
        assert told[0].filename == __file__ and "n_folds" in text


def test_one_candidate_or_shared_components():
    dataset = patients((2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_gmm(dataset, k_comps=2, verbose=False)
    with pytest.warns(UserWarning, match="1 of 1 .*'all patients' \\(2\\)"):
        fit_gmm(dataset, k_comps=[1, 2], component_sharing="global", verbose=False)
    assert list(dataset.gmm["selection"]["at_edge_by_distribution"].values()) == [True, True]


def test_every_patient_has_the_reason_why_its_fit_ended():
    rng = np.random.default_rng(0)
    cells = [rng.normal(size=(60, 2)), np.repeat(rng.normal(size=(2, 2)), 30, 0)]
    options = {"k_comps": 3, "tol": 1e-9, "verbose": False}
    for most, expected in ((1, "max_epochs"), (10_000, "converged")):
        dataset = fit_gmm(TripletDataset(cells, [0, 1]), max_iter=most, **options)
        assert dataset.gmm["distribution_reasons"].tolist() == [expected, "few_cells"]
    shared = fit_gmm(TripletDataset(cells[:1] * 2, [0, 1]), component_sharing="global", max_iter=1, **options)
    assert shared.gmm["distribution_reasons"].tolist() == ["max_epochs"] * 2
    fit_gmm(dataset, k_comps=[1, 2], train_size=0.99, verbose=False)
    assert (selection_table(dataset.gmm)["reason"] == "few_cells").all()
    fit_gmm(dataset, k_comps=[1, 2], verbose=False)
    assert (selection_table(dataset.gmm)["reason"] == "").all()


def test_a_file_says_how_the_fit_ended(tmp_path):
    cells = np.random.default_rng(0).normal(size=(60, 2))
    going = GaussianMixture(2, random_state=0).partial_fit(cells).partial_fit(cells[:20])
    short = GaussianMixture(3, random_state=0, trainer_params={"max_epochs": 1}).fit(cells)
    for mixture in (going, short, GaussianMixture(2, random_state=0).fit(cells)):
        mixture.save(tmp_path / "mixture")
        again = GaussianMixture.load(tmp_path / "mixture")
        assert again.reason_ == mixture.reason_
        assert again.partial_fit(cells[:30]).partial_fit(cells[:20]).reason_ == "running"
        assert again.fit(cells).reason_ == GaussianMixture(**mixture.get_params()).fit(cells).reason_
