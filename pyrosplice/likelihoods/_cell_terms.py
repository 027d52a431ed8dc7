r"""Density of one count a cell and its derivatives in the two predictors of expression, location η and scale ζ.

Arrays are ``(G, N)``, genes first; genes never interact. A row is a cell, or cells of equal predictors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LOG_LINK_LIMIT = 300.0  # exp stays finite, and so does its square


class Terms(NamedTuple):
    """Log density of each entry and its derivatives, all ``(G, N)``; ``h_*`` are minus second derivatives."""

    value: Tensor
    g_eta: Tensor
    g_zeta: Tensor
    h_eta: Tensor
    h_cross: Tensor
    h_zeta: Tensor


def terms_by_autograd(
    density: Callable[[Tensor, Tensor, Tensor], Tensor], total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor
) -> Terms:
    """Weighted log density and its derivatives of rows with ``total`` = weight × count.

    Parameters
    ----------
    density
        Density of counts ``(G, N, 1)``, η ``(G, N, 1)`` and ζ ``(G, N)``: the log density ``(G, N)``.
    total, weight, eta, zeta
        Rows and their predictors, each ``(G, N)`` or broadcast to it.
    """
    observed = torch.where(weight > 0, total / weight, torch.zeros_like(total)).unsqueeze(-1)
    with torch.enable_grad():
        e = eta.detach().clone().requires_grad_(True)
        z = zeta.detach().expand_as(e).clone().requires_grad_(True)
        value = weight * density(observed, e.unsqueeze(-1), z)
        g_e, g_z = _slopes(value, e, z)
        h_ee, h_ez = _slopes(g_e, e, z)
        _, h_zz = _slopes(g_z, e, z)
    return Terms(*(t.detach() for t in (value, g_e, g_z, -h_ee, -h_ez, -h_zz)))


def _slopes(value: Tensor, e: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    if not value.requires_grad:
        return torch.zeros_like(e), torch.zeros_like(z)
    grads = torch.autograd.grad(value.sum(), (e, z), create_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(e) if g is None else g for g in grads)  # type: ignore[return-value]
