"""Small data sets of the tests of guides."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance


def tissue(side: int, genes: int, *, isoforms: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, CarCovariance]:
    """Isoform counts (G, N, K) with a spatial effect (sigma 0.7, theta 0.6), one covariate (N, 1), and the field."""
    generator = torch.Generator().manual_seed(seed)
    n, double = side * side, {"dtype": torch.float64, "generator": generator}
    coords = torch.cartesian_prod(torch.arange(float(side)), torch.arange(float(side)))
    car = CarCovariance(knn_graph(coords, k_neighbors=4), rho=0.9)
    mixed = 0.6 * torch.as_tensor(car.dense()) + 0.4 * torch.eye(n, dtype=torch.float64)
    effect = 0.7 * torch.linalg.cholesky(mixed) @ torch.randn(genes, n, isoforms - 1, **double)
    design = torch.randn(n, 1, **double)
    eta = effect + design @ (0.5 * torch.randn(genes, 1, isoforms - 1, **double)) + 0.3
    usage = torch.softmax(torch.cat([eta, torch.zeros(genes, n, 1, dtype=torch.float64)], -1), -1)
    drawn = torch.multinomial(usage.reshape(-1, isoforms), 30, replacement=True, generator=generator)
    counts = torch.nn.functional.one_hot(drawn, isoforms).sum(1).reshape(genes, n, isoforms).double()
    return counts, design, car


def blobs(seed: int = 0) -> Tensor:
    """250 cells of two Gaussian clusters in the plane."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(150, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 0.5]) - 1.5
    second = 0.7 * torch.randn(100, 2, generator=generator, dtype=torch.float64) + 1.5
    return torch.cat([first, second])


def inflated(genes: int, cells: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Zero-inflated counts (G, N) of rate exp(2 + x b + effect), and x (N,)."""
    generator = torch.Generator().manual_seed(seed)
    double = {"dtype": torch.float64, "generator": generator}
    x = torch.randn(cells, **double)
    rate = (2.0 + 0.4 * torch.randn(genes, 1, **double) * x + 0.3 * torch.randn(genes, cells, **double)).exp()
    seen = torch.rand(genes, cells, **double) > 0.3
    return torch.poisson(rate, generator=generator) * seen, x
