"""What a person gives a mixture: cells in any container, weights, starting tables; paired by name, checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data
from torch import Tensor

from pyrosplice._mixture.em.loop import block_size
from pyrosplice._mixture.em.row_blocks import RowBlocks
from pyrosplice._mixture.fitted_state import MixtureState
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.rows import as_rows, column_names, is_array
from pyrosplice._tables.containers import well_formed
from pyrosplice._tables.names import by_name, names_of
from pyrosplice.errors import InvalidArgumentError

FEATURES = ("n_features_in_", "feature_names_in_", "named_by_anndata_")


class NotNumbersError(InvalidArgumentError, TypeError):
    """Cells of a type that is not a matrix of numbers."""


@contextmanager
def features_kept_on_failure(estimator: MixtureState) -> Iterator[None]:
    """A fit that fails leaves what an earlier one knows of its features, so that its model goes on working."""
    before = {name: value for name, value in vars(estimator).items() if name in FEATURES}
    try:
        yield
    except BaseException:
        for name in FEATURES:
            if name in before:
                setattr(estimator, name, before[name])
            elif name in vars(estimator):
                delattr(estimator, name)
        raise


def read_cells(estimator: MixtureState, X: Any, *, reset: bool, sample_weight: Any = None) -> RowBlocks:
    """Cells as blocks, and their weights in the same order.

    Parameters
    ----------
    estimator
        Whose options apply; its ``n_features_in_`` and ``feature_names_in_`` are set where ``reset``, compared else.
    X, sample_weight
        As of ``GaussianMixture.fit``.

    Raises
    ------
    InvalidArgumentError
        ``X`` is no matrix of numbers, has other features than the fit, or too few rows; impossible weights.
    """
    names = names_of(X)
    X = _validated(estimator, X, reset=reset)
    options, rep = estimator.trainer(), estimator.use_rep
    rows = as_rows(X, size=estimator.batch_size or 1, use_rep=rep, dtype=options.dtype, device=options.device)
    if estimator.batch_size is None:
        rows.size = min(rows.n_rows, block_size(rows.dim, estimator.covariance_type))
    if reset:
        estimator.n_features_in_ = rows.dim
    elif rows.dim != estimator.n_features_in_:
        raise InvalidArgumentError(
            f"X has {rows.dim} features, but GaussianMixture is expecting {estimator.n_features_in_} features as input."
        )
    if reset and rows.n_rows < estimator.num_components:
        raise InvalidArgumentError(
            f"num_components: found {estimator.num_components}, but X has n_samples={rows.n_rows} rows."
        )
    rows.weights = _weights(by_name(sample_weight, names, "sample_weight"), rows)
    return rows


def _validated(estimator: MixtureState, X: Any, *, reset: bool) -> Any:
    """Check ``X`` as scikit-learn does, with names of features kept or compared."""
    try:
        if is_array(X):
            with warnings.catch_warnings():
                if estimator.named_by_anndata_ and not reset:  # whose X as an array is no reason to warn
                    warnings.filterwarnings("ignore", "X does not have valid feature names")
                found = validate_data(
                    estimator,
                    _plain(X, sparse=estimator.batch_size is not None),
                    reset=reset,
                    dtype=[np.float64, np.float32],
                    accept_sparse="csr",
                    ensure_min_samples=2 if reset else 1,
                    ensure_all_finite=False,
                )
            estimator.named_by_anndata_ &= not reset
            return found
        _keep_or_compare_names(estimator, X, reset=reset)
    except InvalidArgumentError:
        raise
    except ValueError as error:
        raise InvalidArgumentError(_of_cells(error)) from error
    except TypeError as error:
        raise NotNumbersError(_of_cells(error)) from error
    return X


def _of_cells(error: Exception) -> str:
    """What scikit-learn found wrong with ``X``, which it does not always name."""
    return str(error) if str(error).startswith("X") else f"X: {error}"


def _keep_or_compare_names(estimator: MixtureState, X: Any, *, reset: bool) -> None:
    names = column_names(X, estimator.use_rep)
    if names is not None and (reset or hasattr(estimator, "feature_names_in_")):
        estimator.named_by_anndata_ |= reset
        validate_data(estimator, pd.DataFrame(columns=names), reset=reset, skip_check_array=True)
    elif reset and hasattr(estimator, "feature_names_in_"):
        del estimator.feature_names_in_


def check_feature_names(estimator: MixtureState, X: Any) -> None:
    """Raise where cells ``X`` name other features than the fit's, or the same in another order."""
    try:
        _keep_or_compare_names(estimator, X, reset=False)
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error


def check_cells_of_draws(estimator: MixtureState, X: Any) -> None:
    """Raise where posterior draws cannot be had of cells ``X``: other features than the fit's, missing values."""
    check_feature_names(estimator, X)
    if estimator.missing != "marginalize":
        return
    rows = as_rows(X, size=block_size(estimator.n_features_in_, estimator.covariance_type), use_rep=estimator.use_rep)
    for a, b in rows.spans():
        lost = rows.block(a, b)[0].isnan().nonzero()
        if len(lost):
            raise InvalidArgumentError(
                f"X: posterior draws need complete cells, found NaN in row {a + int(lost[0, 0])}, feature "
                f'{int(lost[0, 1])}; leave those cells out (missing="marginalize" is honoured by fit, predict, score).'
            )


def _plain(X: Any, *, sparse: bool) -> Any:
    """Arrays as they are, if they are of numbers; tables and sparse matrices well-formed, names kept."""
    if scipy.sparse.issparse(X) or hasattr(X, "to_scipy_sparse"):
        if not sparse:
            raise NotNumbersError(
                "X: a sparse matrix is made dense in blocks of batch_size rows; give batch_size, or a dense array."
            )
        return well_formed(X, "X")
    if isinstance(X, pd.DataFrame):
        found = well_formed(X, "X")
        return pd.DataFrame(found, index=X.index, columns=X.columns)
    kind = np.asarray(X).dtype.kind if isinstance(X, (np.ndarray, list, tuple)) else "f"
    text = kind == "O" and any(isinstance(v, (str, bytes)) for v in np.asarray(X, dtype=object).ravel())
    if text or kind in "USMm" or isinstance(X, np.ma.MaskedArray):
        return well_formed(X, "X")
    return X


def _weights(sample_weight: Any, rows: RowBlocks) -> Tensor | None:
    if sample_weight is None:
        return None
    weights = torch.as_tensor(_numbers(sample_weight, "sample_weight"), device=rows.device)
    if weights.dim() == 0:
        weights = weights.expand(rows.n_rows)
    if weights.shape != (rows.n_rows,):
        raise InvalidArgumentError(f"sample_weight.shape == {tuple(weights.shape)}, expected {(rows.n_rows,)}!")
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise InvalidArgumentError("sample_weight: expected finite numbers of at least 0.")
    if not bool((weights > 0).any()):
        raise InvalidArgumentError("sample_weight: all weights are zero; give at least one cell a positive weight.")
    return weights[None]


def _numbers(values: Any, argument: str) -> NDArray[np.float64]:
    found = well_formed(values, argument)
    dense = found.toarray() if scipy.sparse.issparse(found) else found
    return dense.astype(np.float64)


def check_model_fits(estimator: MixtureState, what: str, dim: int | None = None) -> None:
    """Raise where ``model_`` has not the shape that the options (and the ``dim`` features of the cells) ask for."""
    config = estimator.model_.config
    asked = (int(estimator.num_components), estimator.covariance_type, config.num_features if dim is None else dim)
    held = (config.num_components, config.covariance_type, config.num_features)
    if asked != held:
        raise InvalidArgumentError(
            f"{what}: the fitted model_ has {held[0]} components, {held[1]!r} covariances and {held[2]} features, and "
            f"{asked[0]}, {asked[1]!r} and {asked[2]} are asked for; it cannot be gone on from. "
            "Start afresh with clone(), or with warm_start=False and fit."
        )


def given_means(estimator: MixtureState, dim: int) -> Tensor | None:
    """Read ``init_means`` as ``(M, D)``, a table's columns in the order of the features."""
    value = estimator.init_means
    if value is None:
        return None
    return _checked("init_means", _by_feature(estimator, value, "init_means"), (estimator.num_components, dim))


def given_parameters(estimator: MixtureState, dim: int) -> MixtureParameters | None:
    """Where EM starts as the options say, in full: the present model, or all three of the ``init_`` arguments."""
    if estimator.warm_start and hasattr(estimator, "model_"):
        check_model_fits(estimator, "warm_start", dim)
        return estimator.model_.parameters_of()
    weights, covariances = estimator.init_weights, estimator.init_covariances
    if weights is None and covariances is None:
        return None
    means = given_means(estimator, dim)
    if means is None or weights is None or covariances is None:
        raise InvalidArgumentError("init_weights, init_covariances: give both, together with init_means.")
    m, kind = estimator.num_components, estimator.covariance_type
    components = names_of(estimator.init_means)
    weights = _checked("init_weights", by_name(weights, components, "init_weights", what="component"), (m,))
    if bool((weights < 0).any()) or float(weights.sum()) <= 0:
        raise InvalidArgumentError(f"init_weights: expected numbers of at least 0, found {weights.tolist()}.")
    if kind in ("diag", "spherical"):
        covariances = by_name(covariances, components, "init_covariances", what="component")
    shape = {"full": (m, dim, dim), "tied": (dim, dim), "diag": (m, dim), "spherical": (m,)}[kind]
    both = kind in ("full", "tied")
    if isinstance(covariances, (list, tuple)):
        covariances = [_by_feature(estimator, own, "init_covariances", both=both) for own in covariances]
    else:
        covariances = _by_feature(estimator, covariances, "init_covariances", both=both)
    covariances = _checked("init_covariances", covariances, shape)
    smallest = torch.linalg.eigvalsh(covariances).min() if both else covariances.min()
    symmetric = not both or torch.allclose(covariances, covariances.mT, rtol=1e-6)
    if not symmetric or float(smallest) <= 0:
        raise InvalidArgumentError("init_covariances: expected symmetric, positive definite matrices (variances > 0).")
    return MixtureParameters(weights / weights.sum(), means, covariances, kind)


def _by_feature(estimator: MixtureState, value: Any, argument: str, *, both: bool = False) -> Any:
    """A table with its columns (and rows, for ``both``) in the order of the features that the cells name."""
    names = getattr(estimator, "feature_names_in_", None)
    if not isinstance(value, pd.DataFrame) or names is None:
        return value
    index = pd.Index(names)
    value = by_name(value.T, index, argument, what="feature").T
    return by_name(value, index, argument, what="feature") if both else value


def _checked(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    if isinstance(value, (list, tuple)):
        value = [np.asarray(_numbers(own, name)) for own in value]
        if len({own.shape for own in value}) > 1:
            raise InvalidArgumentError(f"{name}: expected finite values of shape {shape}, found rows that differ.")
    found = torch.as_tensor(_numbers(value, name))
    if tuple(found.shape) != tuple(shape) or not bool(found.isfinite().all()):
        raise InvalidArgumentError(f"{name}: expected finite values of shape {shape}, found {tuple(found.shape)}.")
    return found
