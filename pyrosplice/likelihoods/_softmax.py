"""Usage of isoforms from logits, the last isoform as reference, and molecules that fall on isoforms."""

from __future__ import annotations

import torch
from torch import Tensor


def usage_of(eta: Tensor) -> Tensor:
    """Usage of isoforms from logits, ``softmax([η, 0])``, ``(..., K)``; elementwise, faster than softmax for few."""
    top = eta.amax(-1, keepdim=True).clamp_min(0.0)
    odds, reference = torch.exp(eta - top), torch.exp(-top)
    outermost = eta.ndim > 1 and eta.stride(-1) >= max(eta.stride())  # keeps a layout with predictors first
    if outermost:
        order = sorted(range(eta.ndim), key=eta.stride, reverse=True)
        order.insert(0, order.pop(order.index(eta.ndim - 1)))
        both = torch.cat([odds.permute(order), reference.permute(order)])
        both = both.permute([order.index(d) for d in range(eta.ndim)])
    else:
        both = torch.cat([odds, reference], -1)
    return both / (odds.sum(-1, keepdim=True) + reference)


def draw_multinomial(totals: Tensor, usage: Tensor, *, generator: torch.Generator | None) -> Tensor:
    """Draw counts ``(..., N, K)`` of ``totals`` ``(..., N)`` molecules that fall on isoforms by ``usage``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.likelihoods import draw_multinomial
    >>> usage = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    >>> draw_multinomial(torch.tensor([10.0, 20.0]), usage, generator=torch.Generator().manual_seed(0)).sum(-1)
    tensor([10., 20.])
    """
    draws = torch.multinomial(
        usage.reshape(-1, usage.shape[-1]), max(int(totals.max()), 1), replacement=True, generator=generator
    )
    kept = torch.arange(draws.shape[-1], device=draws.device) < totals.reshape(-1, 1)
    counts = torch.zeros(draws.shape[0], usage.shape[-1], dtype=usage.dtype, device=usage.device)
    return counts.scatter_add_(1, draws, kept.to(usage.dtype)).reshape(usage.shape)
