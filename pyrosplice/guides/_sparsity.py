"""Which unknowns of a unit meet in its Hessian, found by derivatives: few products then give all of it.

Two unknowns meet only if some element of some log density depends on both. Columns of the Hessian without a row in
common are found by one product (colouring), and groups of unknowns that never meet are problems of their own (blocks).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix, identity
from scipy.sparse.csgraph import connected_components
from torch import Tensor

MOST_COUPLED = 5000  # unknowns that one element depends on: the Hessian of more is not formed
_CHUNK = 20_000_000  # numbers in one batch of derivatives


class TooCoupledError(ValueError):
    """An element of a log density depends on more unknowns than a Hessian is formed of."""


def dependence(term: Tensor, unknowns: Tensor, columns: Tensor) -> csr_matrix:
    """Which elements of ``term`` ``(G, E)`` depend on which of some columns of ``unknowns`` in any unit: ``(E, m)``.

    A column that one element depends on is told by the ratio of two weighted sums of derivatives, whatever E and m are;
    the others by products, one an element or one a column.
    """
    n_elements, n_columns = term.shape[1], len(columns)
    if not term.requires_grad:
        return csr_matrix((n_elements, n_columns), dtype=bool)
    weights = [1.0 + torch.sin(k * torch.arange(1.0, n_elements + 1, dtype=term.dtype)).square() for k in (1, 2, 3)]
    sums = [_gradient((term * weight).sum(), unknowns)[:, columns] for weight in weights]
    touched = torch.stack([total != 0 for total in sums]).any(0)
    first = _matching((weights[1] / weights[0]), sums[1] / sums[0])
    second = ((weights[2] / weights[0])[first] - sums[2] / sums[0]).abs() < 1e-9
    good = ((weights[1] / weights[0])[first] - sums[1] / sums[0]).abs() < 1e-9
    element = torch.where(touched, first, -1)
    same = (element == element.amax(0)) | ~touched
    single = (((second & good) | ~touched) & same).all(0)
    any_touch = touched.any(0)
    here = (single & any_touch).nonzero()[:, 0]
    rest = (~single & any_touch).nonzero()[:, 0]
    rows, places = element.amax(0)[here], here
    if len(rest):
        row, column = _by_products(term, unknowns, columns[rest])
        rows, places = torch.cat([rows, row]), torch.cat([places, rest[column]])
    entries = np.ones(len(rows), dtype=bool), (rows.numpy(), places.numpy())
    return csr_matrix(entries, shape=(n_elements, n_columns))


def _gradient(total: Tensor, unknowns: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(total, unknowns, retain_graph=True, allow_unused=True)
    return torch.zeros_like(unknowns) if found is None else found


def _matching(known: Tensor, ratio: Tensor) -> Tensor:
    """Index of the element whose ratio is nearest."""
    order = known.argsort()
    ordered = known[order]
    place = torch.searchsorted(ordered, ratio.nan_to_num().contiguous()).clamp(1, max(len(known) - 1, 1))
    if len(known) == 1:
        return torch.zeros_like(place)
    lower = (ratio - ordered[place - 1]).abs() < (ordered[place] - ratio).abs()
    return order[torch.where(lower, place - 1, place)]


def _by_products(term: Tensor, unknowns: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Elements and places in ``columns`` where the Jacobian is not zero."""
    n_elements, found = term.shape[1], []
    by_element = n_elements <= len(columns)
    if by_element:
        source, target, count = term, unknowns, n_elements
    else:
        along = torch.ones_like(term, requires_grad=True)
        (pulled,) = torch.autograd.grad(term, unknowns, along, create_graph=True)
        source, target, count = pulled[:, columns], along, len(columns)
    for part in torch.arange(count).split(max(1, _CHUNK // (source.numel() + target.numel()))):
        seeds = torch.zeros(len(part), *source.shape, dtype=term.dtype)
        seeds[torch.arange(len(part)), :, part] = 1
        slopes = vector_products(source, target, seeds, create_graph=False)
        found.append((slopes[..., columns] if by_element else slopes).ne(0).any(1))
    pattern = torch.cat(found) if by_element else torch.cat(found).T
    row, column = pattern.nonzero(as_tuple=True)
    return row, column


def vector_products(source: Tensor, target: Tensor, seeds: Tensor, *, create_graph: bool) -> Tensor:
    """Pull ``seeds`` ``(C, *source.shape)`` back to ``target``, all at once where the model's functions allow it."""
    if not source.requires_grad or not len(seeds):
        return target.new_zeros(len(seeds), *target.shape)
    options = {"create_graph": create_graph, "retain_graph": True, "allow_unused": True}
    try:
        (found,) = torch.autograd.grad(source, target, seeds, is_grads_batched=True, **options)
    except RuntimeError:  # a function of a model's own that cannot be batched
        rows = [torch.autograd.grad(source, target, seed, **options)[0] for seed in seeds]
        found = None if rows[0] is None else torch.stack(rows)
    return target.new_zeros(len(seeds), *target.shape) if found is None else found


def meeting(jacobians: list[csr_matrix], n_columns: int) -> csr_matrix:
    """Pairs of unknowns that share an element: ``(m, m)``, the diagonal included."""
    out = identity(n_columns, dtype=np.int64, format="csr")
    for jacobian in jacobians:
        widest = int(np.diff(jacobian.indptr).max(initial=0))
        if widest > MOST_COUPLED:
            raise TooCoupledError(f"{widest} unknowns of a unit")
        whole = jacobian.astype(np.int64)
        out = out + whole.T @ whole
    return (out != 0).tocsr()


def colors(pattern: csr_matrix) -> NDArray[np.int64]:
    """A number for every column so that no two of the same number have a row in common; few numbers."""
    counted = pattern.astype(np.int64)
    near = (counted.T @ counted).tocsr()
    out = np.full(pattern.shape[0], -1, dtype=np.int64)
    for column in range(len(out)):
        taken = set(out[near.indices[near.indptr[column] : near.indptr[column + 1]]].tolist())
        out[column] = next(number for number in range(len(taken) + 1) if number not in taken)
    return out


def components(pattern: csr_matrix, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Groups of unknowns that never meet, with the pairs ``rows``, ``columns`` also meeting."""
    size = pattern.shape[0]
    more = coo_matrix((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(size, size)).tocsr()
    _, label = connected_components(pattern + more, directed=False)
    order = np.argsort(label, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
