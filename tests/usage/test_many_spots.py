"""Nothing that grows with the square of the number of spots is made above 5,000 of them."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyrosplice import SplisosmGLMM
from pyrosplice._hypothesis.variance import spatial_kernel
from pyrosplice.data import simulate_isoforms

N_SPOTS = 5184  # 72 × 72
ROOM = N_SPOTS**2 // 8  # numbers: an eighth of a dense matrix
QUIET = {"print_progress": False}


class SmallTensors(TorchDispatchMode):
    """Raises where an operation makes a tensor of more than ``ROOM`` numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().nbytes() > 8 * ROOM:
                raise AssertionError(f"{func} made {tuple(leaf.shape)}")
        return result


@pytest.fixture(scope="module")
def adata():
    return simulate_isoforms(
        n_spots=N_SPOTS, n_genes=1, n_isoforms=2, depth=3.0, theta=0.5, covariates=("iid",), seed=0
    )


@pytest.mark.slow
def test_fits_and_tests_of_many_spots_hold_nothing_dense(adata):
    model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    tracemalloc.start()
    try:
        with SmallTensors():
            model.setup_data(adata, design_mtx="iid")
            model.test_spatial_variability("score", **QUIET)
            model.fit(**QUIET)
            model.test_differential_usage("score", **QUIET)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert model.get_formatted_test_results("du")["pvalue"].between(0, 1).all()
    assert peak < 8 * ROOM * 4  # of all NumPy arrays together: half a dense matrix


def test_a_dense_matrix_would_be_noticed(adata, monkeypatch):
    monkeypatch.setattr(spatial_kernel, "DENSE_LIMIT", 10_000)
    model = SplisosmGLMM()
    model.setup_data(adata)
    with SmallTensors(), pytest.raises(AssertionError, match="made"):
        model.test_spatial_variability("score", **QUIET)
    tracemalloc.start()
    matrix = np.zeros((N_SPOTS, N_SPOTS))
    assert tracemalloc.get_traced_memory()[1] > 8 * ROOM * 4
    tracemalloc.stop()
    assert not matrix.any()
