"""One latent site of a model: its coordinates among the unknowns of a unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import Transform


@dataclass(frozen=True)
class LatentSite:
    """Where a site's unconstrained values stand in the vector of unknowns ``(G, d)`` of all units.

    Attributes
    ----------
    name
        Name of the site.
    transform
        Transformation from unconstrained coordinates to values.
    shape, value_shape
        Shapes of the unconstrained coordinates and of the values.
    event_dim
        Dimensions of one value.
    axis
        Which axis of the coordinates counts the units; None where all are one problem.
    columns
        Columns of the vector of unknowns.
    frames
        The plates of the site.
    dtype
        What the model's own values have.
    """

    name: str
    transform: Transform
    shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    event_dim: int
    axis: int | None
    columns: slice
    frames: tuple[Any, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Unknowns of one unit."""
        return int(self.columns.stop - self.columns.start)

    @property
    def batch_dim(self) -> int:
        """Dimensions to the left of one value."""
        return len(self.value_shape) - self.event_dim

    def pack(self, coordinates: Tensor) -> Tensor:
        """Coordinates as rows, one a unit: ``(G, size)``."""
        if self.axis is None:
            return coordinates.reshape(1, -1)
        return coordinates.movedim(self.axis, 0).reshape(coordinates.shape[self.axis], -1)

    def unpack(self, unknowns: Tensor) -> Tensor:
        """Coordinates ``(..., *shape)`` from the unknowns ``(..., G, d)`` of all sites."""
        mine = unknowns[..., self.columns]
        lead = mine.shape[:-2]
        if self.axis is None:
            return mine.reshape((*lead, *self.shape))
        rest = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return mine.reshape((*lead, mine.shape[-2], *rest)).movedim(len(lead), len(lead) + self.axis)

    def values(self, unknowns: Tensor) -> Tensor:
        """Values ``(..., *value_shape)``, in the floating point type of the model."""
        return self.transform(self.unpack(unknowns)).to(self.dtype)

    def log_volume(self, coordinates: Tensor, values: Tensor) -> Tensor:
        """Log determinant of the transformation, summed by unit: ``(G,)``."""
        logs = self.transform.log_abs_det_jacobian(coordinates, values)
        if self.axis is None:
            return logs.sum().reshape(1)
        return logs.movedim(self.axis, 0).reshape(logs.shape[self.axis], -1).sum(1)

    def is_exponential(self) -> bool:
        """Whether values are exponentials of the coordinates."""
        if self.shape != self.value_shape:
            return False
        zero = torch.zeros(self.shape, dtype=torch.float64)
        low, high = self.transform(zero), self.transform(zero + 1)
        return bool((low > 0).all()) and bool(torch.allclose(high / low, torch.full_like(low, math.e)))

    def is_logistic(self) -> bool:
        """Whether values are logistic functions of the coordinates."""
        if self.shape != self.value_shape:
            return False
        at = [torch.full(self.shape, x, dtype=torch.float64) for x in (-3.0, 0.5)]
        return all(torch.allclose(self.transform(x), torch.sigmoid(x)) for x in at)

    def is_real(self) -> bool:
        """Whether coordinates and values are the same numbers."""
        probe = torch.linspace(-2.0, 2.0, 7, dtype=torch.float64)
        if self.shape != self.value_shape:
            return False
        probe = probe[torch.arange(torch.Size(self.shape).numel()) % 7].reshape(self.shape)
        return bool(torch.equal(self.transform(probe), probe))
