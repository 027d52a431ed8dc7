"""Products with the inverse of a sparse matrix by polynomials, against the dense inverse."""

import numpy as np
import pytest
import scipy.sparse as sp

from pyrosplice._linalg.chebyshev import InversePolynomial

N = 150


@pytest.fixture(scope="module")
def matrix() -> sp.csc_matrix:
    """Rows of one to many entries, eigenvalues from .3 to 8."""
    entries = sp.random(N, N, density=0.03, random_state=0)
    square = (entries @ entries.T).toarray()
    return sp.csc_matrix(0.3 * np.eye(N) + square * (7.7 / np.linalg.eigvalsh(square)[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("n_columns", [1, 16, 37])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("kind", "error"), [(np.float64, 1e-9), (np.float32, 2e-6)])
def test_products_and_quadratic_forms(matrix, n_columns, order, kind, error) -> None:
    inverse = InversePolynomial(matrix, lower=0.3, tolerance=1e-10)
    x = np.asarray(np.random.default_rng(1).normal(size=(N, n_columns)), kind, order)
    expected = np.linalg.solve(matrix.toarray(), x.astype(np.float64))
    product = inverse.product(x)
    assert product.dtype == kind and product.flags[f"{order}_CONTIGUOUS"]
    np.testing.assert_allclose(product, expected, atol=error * abs(expected).max())
    np.testing.assert_allclose(inverse.quadratic(x), (x * expected).sum(0), rtol=10 * error)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_error_is_what_was_asked_for(matrix, tolerance) -> None:
    inverse = InversePolynomial(matrix, lower=0.3, tolerance=tolerance)
    error = inverse.product(np.eye(N)) - np.linalg.inv(matrix.toarray())
    assert np.linalg.norm(error, 2) < tolerance / 0.3
