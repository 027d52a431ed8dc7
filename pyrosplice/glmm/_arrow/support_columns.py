"""The columns of supports: from the coefficients of each support to its observations, and sums back."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrosplice._linalg.blocks import planar


class SupportColumns:
    r"""C of all supports as one sparse matrix ``(N, U w)``; each observation has the w entries of its support.

    Parameters
    ----------
    columns
        c of each observation, ``(N, w)``.
    supports
        Support of each observation, ``(N,)``, 0 to U − 1.
    """

    def __init__(self, columns: Tensor, supports: Tensor):
        n, w = columns.shape
        self.columns, self.supports = columns, supports
        self.n_supports, self.n_columns = int(supports.max()) + 1, w
        at = (supports[:, None] * w + torch.arange(w)).numpy()
        rows = np.arange(0, n * w + 1, w)
        shape = (n, self.n_supports * w)
        self._matrix = sp.csr_matrix((columns.numpy().ravel().copy(), at.ravel(), rows), shape=shape)
        self._matrix.eliminate_zeros()
        self._transposed = self._matrix.T.tocsr()

    def spread(self, blocks: Tensor) -> Tensor:
        """Part of η that coefficients ``(B, U, w Q)`` make, ``(c_i' ⊗ I_Q) b``: (B, N, Q), planar."""
        n_genes, n_supports, size = blocks.shape
        memory = blocks.reshape(n_genes, n_supports, self.n_columns, -1).permute(3, 1, 2, 0)
        planes = memory.reshape(size // self.n_columns, -1, n_genes).contiguous().numpy()
        return torch.from_numpy(np.stack([self._matrix @ plane for plane in planes])).permute(2, 1, 0)

    def gather(self, field: Tensor) -> Tensor:
        """Sums over each support's observations of columns times ``(B, N, Q, ...)``: (B, U, w Q, ...)."""
        shape = field.shape[2:]
        memory = planar(field).permute(*range(2, field.dim()), 1, 0)
        planes = memory.reshape(-1, *memory.shape[-2:]).numpy()
        sums = torch.from_numpy(np.stack([self._transposed @ plane for plane in planes]))
        parts = sums.reshape(*shape, self.n_supports, self.n_columns, -1)
        order = range(1, len(shape))  # the dimensions after Q
        whole = parts.permute(-1, -3, -2, 0, *order).contiguous()
        return whole.reshape(whole.shape[0], self.n_supports, -1, *shape[1:])

    def of_predictors(self, n_predictors: int) -> Tensor:
        """All columns of each observation on all predictors, ``c_i' ⊗ I_Q``: (1, N, Q, w Q), planar."""
        entries = torch.zeros(n_predictors, self.n_columns, n_predictors, len(self.supports), dtype=torch.float64)
        for q in range(n_predictors):
            entries[q, :, q] = self.columns.T
        return entries.flatten(1, 2).unsqueeze(-1).permute(3, 2, 0, 1)

    def products(self, left: Tensor, covariance: Tensor) -> Tensor:
        """Multiply ``(B, N, Q, w Q)`` by the ``(B, U, w Q, w Q)`` of each observation's support."""
        out = torch.zeros_like(left.expand(len(covariance), *left.shape[1:]))
        for k in range(left.shape[-1]):
            row = planar(covariance[:, :, k])
            row = row if self.n_supports == 1 else row.index_select(1, self.supports)
            out.addcmul_(left[..., k, None], row[..., None, :])
        return out
