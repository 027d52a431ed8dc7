"""Options of ``fit_gmm`` and of the data sets: numbers of any type, names that there are, nothing else."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice._mixture.patients.distances import patient_distances
from pyrosplice._mixture.patients.fit_gmm import fit_gmm
from pyrosplice._mixture.patients.patient_options import candidate_numbers
from pyrosplice._mixture.patients.triplets import TripletDataset
from pyrosplice.errors import InvalidArgumentError

INTEGERS = [int, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
CONTAINERS = [
    list,
    tuple,
    set,
    iter,
    np.array,
    pd.Series,
    pd.Index,
    torch.tensor,
    lambda k: pd.Series(k, dtype="Int64"),
]


def two_patients():
    rng = np.random.default_rng(0)
    return TripletDataset([rng.normal(size=(40, 2)), 3 + rng.normal(size=(50, 2))], [0, 1])


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.sampled_from(INTEGERS), st.sampled_from(CONTAINERS))
def test_integers_of_any_type_in_any_sequence_are_the_same_numbers(numbers, integer, container):
    typed = [int(k) if container is torch.tensor else integer(k) for k in numbers]
    assert candidate_numbers(container(typed)) == sorted(set(numbers))
    assert candidate_numbers(integer(numbers[0])) == [numbers[0]] == candidate_numbers(np.array(numbers[0]))


@given(
    st.sampled_from([2.0, 2.5, np.float32(2), np.nan, True, np.True_, False, 0, -1, np.int8(-3), "2", None, [2], 2j]),
    st.booleans(),
)
def test_what_is_no_positive_integer_is_refused(wrong, alone):
    with pytest.raises(InvalidArgumentError, match="k_comps"):
        if alone and wrong is not None and not isinstance(wrong, list):
            candidate_numbers(wrong)
        candidate_numbers([1, wrong])


@pytest.mark.parametrize("none", [[], (), np.array([], int), range(0), {}, "", pd.Series([], dtype=int)])
def test_no_number_is_refused(none):
    with pytest.raises(InvalidArgumentError, match="k_comps"):
        candidate_numbers(none)


def test_fits_are_the_same_for_every_type():
    expected = fit_gmm(two_patients(), k_comps=[1, 2], verbose=False)
    for k_comps in (np.arange(1, 3), [np.uint8(1), np.int32(2)], range(1, 3)):
        assert torch.equal(fit_gmm(two_patients(), k_comps=k_comps, verbose=False).weights, expected.weights)
    fixed = fit_gmm(two_patients(), k_comps=np.int64(2), verbose=False)
    assert torch.equal(fixed.weights, fit_gmm(two_patients(), k_comps=2, verbose=False).weights)


@pytest.mark.parametrize("name", ["max_iter", "n_init", "n_folds", "random_state", "train_size", "tol", "eps"])
@pytest.mark.parametrize("wrong", [True, np.nan, "1", -1, [1], np.True_])
def test_options_that_are_no_numbers_are_refused_by_name(name, wrong):
    with pytest.raises(InvalidArgumentError, match=name):
        fit_gmm(two_patients(), k_comps=[1, 2], verbose=False, **{name: wrong})


@pytest.mark.parametrize("call", [fit_gmm, patient_distances])
def test_options_that_there_are_not_are_refused_with_those_that_there_are(call):
    with pytest.raises(InvalidArgumentError, match=r"no option 'k_comp'; it takes dataset") as error:
        call(two_patients(), k_comp=2)
    assert isinstance(error.value, TypeError)
