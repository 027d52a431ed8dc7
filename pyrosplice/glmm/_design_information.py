"""What the counts of a gene say about the coefficients of covariates: X' V⁻¹ X, a block of columns at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PrecisionProduct = Callable[[Tensor], Tensor]
"""Product ``V⁻¹ x`` of every gene: ``(B, N, Q, R)`` to ``(B, N, Q, R)``."""

BLOCK = 2**24  # numbers that are worked on at once: 128 MB


def covariate_information(precision_product: PrecisionProduct, columns: Tensor, n_genes: int, n_logits: int) -> Tensor:
    """Information of covariates ``(N, C)``, ``(X ⊗ I)' V⁻¹ (X ⊗ I)``: ``(B, C Q, C Q)``, logits fastest."""
    n_spots = columns.shape[0]
    eye = torch.eye(n_logits, dtype=columns.dtype, device=columns.device)
    size = max(1, BLOCK // (n_genes * n_spots * n_logits**2))
    parts = []
    for some in columns.split(size, 1):
        spread = torch.einsum("nc,qk->nqck", some, eye).flatten(2)
        image = precision_product(spread.expand(n_genes, *spread.shape))
        parts.append(torch.einsum("nc,bnqr->bcqr", columns, image).flatten(1, 2))
    information = torch.cat(parts, -1)
    return (information + information.mT) / 2
