"""Cells read block by block, from wherever they are: the only access to data that EM needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError


class RowBlocks:
    """A batch of B data sets of up to N cells, read as blocks of rows.

    Parameters
    ----------
    read
        ``read(start, stop)`` gives rows ``(B, stop - start, D)``; must give the same rows each time.
    n_rows
        N, padding included.
    size
        Rows in a block.
    weights
        Weight of each cell, ``(B, N)``, non-negative; 0 marks padding. None means 1.
    """

    def __init__(
        self, read: Callable[[int, int], Tensor], n_rows: int, *, size: int, weights: Tensor | None = None
    ) -> None:
        self._read = read
        self.n_rows = n_rows
        self.size = max(1, min(size, n_rows))
        self.weights = weights
        first = read(0, 1)
        self.n_sets, self.dim = first.shape[0], first.shape[-1]
        self.dtype, self.device = first.dtype, first.device

    @classmethod
    def from_tensor(cls, x: Tensor, *, size: int, weights: Tensor | None = None) -> RowBlocks:
        """Blocks of one matrix ``(N, D)`` in memory."""
        return cls(lambda a, b: x[None, a:b], len(x), size=size, weights=None if weights is None else weights[None])

    @classmethod
    def padded(cls, sets: Sequence[Tensor]) -> RowBlocks:
        """Pad several matrices ``(N_b, D)`` to one block, the shorter ones with cells of weight 0."""
        longest = max(map(len, sets))
        x = sets[0].new_zeros(len(sets), longest, sets[0].shape[1])
        weights = torch.zeros(len(sets), longest, dtype=torch.float64, device=x.device)
        for b, rows in enumerate(sets):
            x[b, : len(rows)] = rows
            x[b, len(rows) :] = rows[0]
            weights[b, : len(rows)] = 1
        return cls(lambda a, b: x[:, a:b], longest, size=longest, weights=weights)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Start and stop of each block."""
        for start in range(0, self.n_rows, self.size):
            yield start, min(start + self.size, self.n_rows)

    def block(self, start: int, stop: int) -> Tensor:
        """Rows ``(B, stop - start, D)`` in float64."""
        return self._read(start, stop).to(torch.float64)

    def block_weights(self, start: int, stop: int) -> Tensor | None:
        """Weights of those rows ``(B, stop - start)``, or None."""
        return None if self.weights is None else self.weights[:, start:stop]

    def take(self, index: Tensor) -> Tensor:
        """Rows at ``index`` ``(B, R)`` of each data set: ``(B, R, D)`` in float64."""
        if self.n_sets == 1:
            return torch.cat([self.block(i, i + 1) for i in index[0].tolist()], 1)
        sets = torch.arange(self.n_sets, device=index.device)[:, None]
        return self.block(0, self.n_rows)[sets, index]

    def total_weight(self) -> Tensor:
        """Number of cells, or their total weight: ``(B,)``."""
        if self.weights is None:
            return torch.full((self.n_sets,), float(self.n_rows), dtype=torch.float64, device=self.device)
        return self.weights.sum(1)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Weighted mean ``(B, D)`` and covariance ``(B, D, D)``, in two passes about a first cell."""
        origin = self.block(0, 1)
        total = self.total_weight()[:, None]
        mean = torch.zeros_like(origin[:, 0])
        for a, b in self.spans():
            mean += _weighted(self.block(a, b) - origin, self.block_weights(a, b)).sum(1)
        mean = origin[:, 0] + mean / total
        second = mean.new_zeros(self.n_sets, self.dim, self.dim)
        for a, b in self.spans():
            y = self.block(a, b) - mean[:, None]
            second += _weighted(y, self.block_weights(a, b)).mT @ y
        return mean, second / total[..., None]


def require_finite(x: Tensor, first_row: int = 0, *, allow_nan: bool = False) -> None:
    """Raise :class:`InvalidArgumentError` where cells ``(n, D)``, the first of them ``first_row``, are not numbers.

    ``allow_nan`` takes NaN as missing, so that infinities alone are refused.
    """
    bad = x.isinf() if allow_nan else ~x.isfinite()
    if not bool(bad.any()):
        return
    row, feature = bad.nonzero()[0].tolist()
    kind = "NaN" if bool(x[row, feature].isnan()) else "infinity"
    raise InvalidArgumentError(
        f"X: expected finite values (no NaN or infinity), found {kind} in row {first_row + row}, feature {feature}; "
        "leave those cells out"
        + (
            "."
            if kind == "infinity"
            else ', or let GaussianMixture(missing="marginalize") take NaN as a value missing at random.'
        )
    )


def _weighted(y: Tensor, weights: Tensor | None) -> Tensor:
    return y if weights is None else y * weights[..., None]
