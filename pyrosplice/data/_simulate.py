"""Simulated tissue: isoform counts of spots in space, with everything that made them known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyrosplice._tables.containers import as_dense
from pyrosplice._tables.names import by_name
from pyrosplice.effects._isoform_effect import IsoformEffect, SoftmaxBasis
from pyrosplice.errors import InvalidArgumentError, check_integer, check_option
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.spatial._graph import Graph, check_coords, knn_graph
from pyrosplice.spatial.car import CarCovariance

COVARIATES = ("smooth", "iid", "binary")


def simulate_isoforms(  # noqa: PLR0913 (options of a simulation, all by keyword)
    *,
    n_spots: int = 1024,
    n_genes: int = 50,
    n_isoforms: int = 3,
    layout: str | ArrayLike = "grid",
    depth: float | ArrayLike = 5.0,
    sigma: float | ArrayLike = 0.7,
    theta: float | ArrayLike = 0.7,
    covariates: Sequence[str] = (),
    beta: float | ArrayLike = 0.0,
    intercept_scale: float = 0.5,
    likelihood: Likelihood | None = None,
    k_neighbors: int = 4,
    graph: Graph = "mutual",
    rho: float = 0.99,
    seed: int = 0,
    isoform_effect: IsoformEffect = "independent",
    usage: ArrayLike | None = None,
    size_factors: ArrayLike | None = None,
) -> AnnData:
    r"""Draw spatial isoform counts from the multinomial mixed model.

    .. math::
        n_{gi} \sim \operatorname{Poisson}(d_g c_i), \quad
        \eta_g = X \beta_g + 1 b_g' + \nu_g, \quad
        \nu_{gk} \sim N(0, \sigma_g^2 (\theta_g V + (1 - \theta_g) I)), \quad
        y_{gi} \sim p(\cdot \mid n_{gi}, \eta_{gi})

    Parameters
    ----------
    n_spots
        N; of a given layout, the number of its points.
    n_genes, n_isoforms
        G and K.
    layout
        ``"grid"`` (row-major on a square as full as N allows, unit distance), ``"random"`` (uniform with one spot
        a unit area) or coordinates ``(N, D)``.
    depth
        Mean count of a gene per spot: a number or ``(G,)`` (here and below also a Series by gene name).
    sigma
        Standard deviation σ of the random effect, of logits or isoforms (``isoform_effect``): a number or ``(G,)``.
    theta
        Spatial share θ of its variance, in [0, 1]: a number or ``(G,)``.
    covariates
        Kinds of covariate, P of them: ``"smooth"`` (a draw from N(0, V), standardised), ``"iid"`` (standard normal)
        or ``"binary"`` (0 or 1 with equal chance).
    beta
        Effects on the logits against the last isoform; broadcast to ``(G, P, Q)``. A number is the effect on the
        first isoform, 0 on the others.
    intercept_scale
        Standard deviation of the intercepts b, logits, around those of ``usage``.
    likelihood
        What draws the counts; :class:`~pyrosplice.likelihoods._contract.Multinomial` by default.
    k_neighbors, graph, rho
        The graph and its CAR covariance V.
    seed
        Seed of everything random. The same seed gives the same data.
    isoform_effect
        ``"independent"``: ν of the logits against the last isoform are independent; this one varies less than the
        others. ``"symmetric"``: with covariance I + 11' between them, that is an effect of standard deviation σ of
        every isoform on the scale of the softmax.
    usage
        Usage of the isoforms where nothing has an effect, ``(K,)`` or ``(G, K)``; equal by default. Exactly this one
        with ``intercept_scale=0``.
    size_factors
        c, how much deeper each spot is than one of depth d: ``(N,)``, of all genes alike (also a Series by spot name);
        1 by default.

    Returns
    -------
    AnnData
        Spots × (G·K isoforms). ``layers["counts"]`` sparse int32; ``layers["true_ratios"]`` the usage that was drawn
        from; ``obsm["spatial"]``; ``obsp["connectivities"]`` the graph of V; ``obs`` the covariates, and
        ``size_factor`` where they are given;
        ``var["gene_symbol"]``, ``var["intercept"]`` and ``var["beta_<covariate>"]`` per isoform (0 for the
        reference); ``uns["truth"]`` a table of ``sigma``, ``theta`` and ``depth`` per gene; ``uns["simulation"]``
        the settings.

    Raises
    ------
    InvalidArgumentError
        Sizes below 1 (isoforms below 2), θ outside [0, 1], σ or depth negative, unknown layout, covariate or effect,
        usage that does not sum to one or has a zero, size factors that are not positive, arrays of the wrong shape.

    Examples
    --------
    >>> from pyrosplice.data import simulate_isoforms
    >>> adata = simulate_isoforms(n_spots=64, n_genes=4, theta=[0.0, 0.0, 0.7, 0.7], covariates=("iid",), seed=0)
    >>> adata.shape, adata.obs.columns.tolist(), list(adata.layers)
    ((64, 12), ['iid'], ['counts', 'true_ratios'])
    >>> adata.uns["truth"]
            sigma  theta  depth
    gene_1    0.7    0.0    5.0
    gene_2    0.7    0.0    5.0
    gene_3    0.7    0.7    5.0
    gene_4    0.7    0.7    5.0
    """
    check_option("isoform_effect", isoform_effect, get_args(IsoformEffect))
    coords = _coordinates(layout, n_spots, seed)
    check_integer("n_genes", n_genes, least=1)
    check_integer("n_isoforms", n_isoforms, least=2)
    names = pd.Index([f"gene_{g + 1}" for g in range(n_genes)])
    genes = pd.DataFrame(
        {
            "sigma": per_gene("sigma", sigma, names, (0.0, np.inf)),
            "theta": per_gene("theta", theta, names, (0.0, 1.0)),
            "depth": per_gene("depth", depth, names, (0.0, np.inf)),
        },
        index=names,
    )
    generator = torch.Generator().manual_seed(int(seed))
    adjacency = knn_graph(coords, k_neighbors=k_neighbors, graph=graph)
    covariance = CarCovariance(adjacency, rho=rho)
    design = _covariates(covariates, covariance, generator)
    effects = _effects(beta, n_genes, design.shape[1], n_isoforms - 1)
    intercepts = intercept_scale * torch.randn(n_genes, n_isoforms - 1, generator=generator, dtype=torch.float64)
    if usage is not None:
        intercepts = intercepts + _logits_of(usage, names, n_isoforms)
    basis = SoftmaxBasis.plain(n_isoforms - 1, design) if isoform_effect == "symmetric" else None
    fixed = design @ effects + intercepts.unsqueeze(1)
    spots = pd.Index([f"spot_{i + 1}" for i in range(len(coords))])
    deeper = torch.ones(len(spots), dtype=torch.float64) if size_factors is None else _sizes(size_factors, spots)
    at_spots = _random_effects(genes, basis, covariance, n_isoforms - 1, generator)
    expected = torch.from_numpy(genes["depth"].to_numpy())[:, None] * deeper
    counts, ratios = _draw(fixed, at_spots, expected, likelihood or Multinomial(), generator)

    adata = _assemble(counts, ratios, genes, spots, n_isoforms)
    if size_factors is not None:
        adata.obs["size_factor"] = deeper.numpy()
    adata.obsm["spatial"], adata.obsp["connectivities"] = coords, adjacency
    adata.var["intercept"] = _with_reference(intercepts)
    for p, name in enumerate(_unique(covariates)):
        adata.obs[name] = design[:, p].numpy()
        adata.var[f"beta_{name}"] = _with_reference(effects[:, p])
    adata.uns["simulation"] = {"seed": seed, "rho": rho, "k_neighbors": k_neighbors, "graph": graph}
    return adata


def _coordinates(layout: object, n_spots: int, seed: int) -> NDArray[np.float64]:
    if not isinstance(layout, str):
        return check_coords(layout, name="layout")
    check_option("layout", layout, ("grid", "random"))
    check_integer("n_spots", n_spots, least=2)
    if layout == "random":
        return np.random.default_rng(seed).uniform(0, np.sqrt(n_spots), size=(n_spots, 2))
    side = int(np.ceil(np.sqrt(n_spots)))
    return np.stack(np.divmod(np.arange(n_spots), side), 1).astype(np.float64)


def _covariates(kinds: Sequence[str], covariance: CarCovariance, generator: torch.Generator) -> Tensor:
    """Covariates ``(N, P)``."""
    columns = []
    for kind in kinds:
        check_option("covariates", kind, COVARIATES)
        if kind == "smooth":
            field = covariance.sample(1, generator)[0]
            columns.append((field - field.mean()) / field.std())
        else:
            normal = torch.randn(covariance.n_spots, generator=generator, dtype=torch.float64)
            columns.append(normal if kind == "iid" else (normal > 0).to(torch.float64))
    return torch.stack(columns, 1) if columns else torch.zeros(covariance.n_spots, 0, dtype=torch.float64)


def _effects(beta: object, n_genes: int, n_covariates: int, n_logits: int) -> Tensor:
    """Effects ``(G, P, Q)``."""
    value = as_dense(beta, "beta")
    if value.ndim == 0:
        value = np.concatenate([value[None], np.zeros(n_logits - 1)])
    try:
        return torch.from_numpy(np.broadcast_to(value, (n_genes, n_covariates, n_logits)).copy())
    except ValueError as error:
        raise InvalidArgumentError(
            f"beta: expected a number or an array that broadcasts to (n_genes, n_covariates, n_isoforms - 1) = "
            f"{(n_genes, n_covariates, n_logits)}, found shape {value.shape}."
        ) from error


def _random_effects(
    genes: pd.DataFrame,
    basis: SoftmaxBasis | None,
    covariance: CarCovariance,
    n_logits: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Draw the random part of η, ``(N, Q)``, of one gene after the other.

    Each is drawn when it is asked for, before the gene's counts, which take their numbers from the same generator.
    """
    n_genes, n_spots = len(genes), covariance.n_spots
    spatial = covariance.sample(n_genes * n_logits, generator).reshape(n_genes, n_logits, n_spots)
    for field, sigma, theta in zip(spatial, genes["sigma"], genes["theta"], strict=True):
        noise = torch.randn(n_spots, n_logits, generator=generator, dtype=torch.float64)
        effect = sigma * (theta**0.5 * field.T + (1 - theta) ** 0.5 * noise)
        yield effect if basis is None else basis.logits(effect)


def _draw(
    fixed: Tensor, effects: Iterable[Tensor], expected: Tensor, likelihood: Likelihood, generator: torch.Generator
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.float32]]]:
    """Draw counts and usage of every gene, each ``(N, K)``.

    ``fixed`` is η without its random part, ``(G, N, Q)``, and ``expected`` the mean total of each spot ``(G, N)``.
    """
    counts, ratios = [], []
    for without, effect, depth in zip(fixed, effects, expected, strict=True):
        eta = without + effect
        totals = torch.poisson(depth, generator=generator)
        counts.append(likelihood.draw(totals, eta, generator=generator).numpy().astype(np.int32))
        ratios.append(likelihood.expected(eta).numpy().astype(np.float32))
    return counts, ratios


def _assemble(
    counts: list[NDArray[np.int32]],
    ratios: list[NDArray[np.float32]],
    genes: pd.DataFrame,
    spots: pd.Index,
    n_isoforms: int,
) -> AnnData:
    matrix = sp.hstack([sp.csr_matrix(c) for c in counts], format="csr", dtype=np.int32)
    symbol = np.repeat(genes.index.to_numpy(), n_isoforms)
    names = [f"{gene}_iso_{k + 1}" for gene in genes.index for k in range(n_isoforms)]
    return AnnData(
        X=matrix.astype(np.float32),
        obs=pd.DataFrame(index=spots),
        var=pd.DataFrame({"gene_symbol": symbol}, index=names),
        layers={"counts": matrix, "true_ratios": np.hstack(ratios)},
        uns={"truth": genes},
    )


def per_gene(name: str, value: object, genes: pd.Index, limits: tuple[float, float]) -> NDArray[np.float64]:
    """Read a number for every gene ``(G,)``: one for all, ``(G,)`` or a Series by name, finite and within limits."""
    values, n_genes = as_dense(by_name(value, genes, name, what="gene"), name), len(genes)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != n_genes):
        raise InvalidArgumentError(f"{name}: expected a number or ({n_genes},), found shape {values.shape}.")
    values = np.broadcast_to(values, (n_genes,)).copy()
    if not ((values >= limits[0]) & (values <= limits[1]) & np.isfinite(values)).all():
        raise InvalidArgumentError(f"{name}: expected values in [{limits[0]:g}, {limits[1]:g}], found {value!r}.")
    return values


def _logits_of(usage: object, genes: pd.Index, n_isoforms: int) -> Tensor:
    """Logits ``(Q,)`` or ``(G, Q)`` against the last isoform."""
    shares = as_dense(by_name(usage, genes, "usage", what="gene"), "usage")
    if shares.shape not in ((n_isoforms,), (len(genes), n_isoforms)):
        raise InvalidArgumentError(
            f"usage: expected ({n_isoforms},) or ({len(genes)}, {n_isoforms}), found shape {shares.shape}."
        )
    if not (shares > 0).all() or not np.allclose(shares.sum(-1), 1, rtol=0, atol=1e-6):
        raise InvalidArgumentError("usage: expected shares above 0 that sum to one over the isoforms of a gene.")
    return torch.from_numpy(np.log(shares[..., :-1] / shares[..., -1:]))


def _sizes(size_factors: object, spots: pd.Index) -> Tensor:
    values = as_dense(by_name(size_factors, spots, "size_factors", what="spot"), "size_factors")
    if values.shape != (len(spots),):
        raise InvalidArgumentError(f"size_factors: expected ({len(spots)},), found shape {values.shape}.")
    if not ((values > 0) & (values < np.inf)).all():
        raise InvalidArgumentError("size_factors: expected positive numbers.")
    return torch.from_numpy(values)


def _with_reference(logits: Tensor) -> NDArray[np.float64]:
    """Add the reference isoform as 0 to ``(G, Q)``: ``(G·K,)``."""
    return torch.nn.functional.pad(logits, (0, 1)).reshape(-1).numpy()


def _unique(kinds: Sequence[str]) -> list[str]:
    return [kind if kinds.index(kind) == i else f"{kind}_{kinds[:i].count(kind) + 1}" for i, kind in enumerate(kinds)]
