"""Points, weights and labels of distributions as people hold them, as tensors and whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice.data.containers import well_formed
from pyrosplice.data.labels import read_labels
from pyrosplice.data.names import by_name, names_of
from pyrosplice.errors import InvalidArgumentError


def tensors_of(name: str, values: Any) -> Any:
    """One tensor where the shapes agree, a list of them where they do not; finite float64 either way."""
    if isinstance(values, (pd.DataFrame, pd.Series)):
        values = values.to_numpy()
    if name == "supports":
        values = _same_columns(list(values))
    parts = [torch.as_tensor(_plain(v, f"{name}: distribution {i}")) for i, v in enumerate(values)]
    for i, part in enumerate(parts):
        if part.numel() == 0 or not bool(part.isfinite().all()):
            raise InvalidArgumentError(f"{name}: distribution {i} is empty, or has NaN or infinite values.")
    if len({p.shape for p in parts}) == 1:
        return torch.stack(parts)
    if len({p.shape[1:] for p in parts}) > 1 and name == "supports":
        raise InvalidArgumentError(f"{name}: distributions have different numbers of features.")
    return parts


def _plain(values: Any, argument: str) -> NDArray[np.float64]:
    found = well_formed(values, argument)
    return (found if isinstance(found, np.ndarray) else found.toarray()).astype(np.float64)


def _same_columns(tables: list[Any]) -> list[Any]:
    """Tables with their columns in the order of the first one's."""
    first = next((t.columns for t in tables if isinstance(t, pd.DataFrame)), None)
    return [
        by_name(t.T, first, f"supports: distribution {i}", what="feature").T if isinstance(t, pd.DataFrame) else t
        for i, t in enumerate(tables)
    ]


def whole_labels(values: Any) -> list[int]:
    """Classes as whole numbers: those given, or the numbers of the sorted levels."""
    if len(values) == 0:
        return []
    read = read_labels(values, "distribution_labels")
    whole = all(isinstance(v, (int, float, np.number)) and float(v).is_integer() for v in read.values)
    order = sorted(range(len(read.levels)), key=lambda i: read.levels[i])
    return [int(read.values[c]) if whole else order.index(int(c)) for c in read.codes]


def paired_weights(weights: Any, supports: Any, labels: Any, identical: bool) -> Any:
    """Weights with their points and their distributions in the order of those given beside them."""
    if isinstance(weights, pd.DataFrame):
        weights = by_name(weights, names_of(labels), "weights", what="distribution")
        if identical:
            weights = by_name(weights.T, names_of(supports), "weights", what="point").T
        return weights.to_numpy()
    if weights is None:
        return None
    points = [supports] * len(weights) if identical else supports
    return [by_name(own, names_of(at), "weights", what="point") for own, at in zip(weights, points, strict=False)]
