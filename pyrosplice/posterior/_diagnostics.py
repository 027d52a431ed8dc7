"""Does the model fit, can the draws be trusted, and what do the priors do: tables from a posterior tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
import xarray as xr

from pyrosplice._optimize.convergence import Convergence
from pyrosplice.errors import NoResultsError
from pyrosplice.glmm._importance import RELIABLE, pareto_k
from pyrosplice.posterior._genes import by_unit, is_padded, one_gene, units_of
from pyrosplice.posterior._sampling import smoothed
from pyrosplice.reasons import OPTIMA, Reason

Statistic = Callable[[np.ndarray], np.ndarray]


def _zeros(counts: np.ndarray) -> np.ndarray:
    return (counts == 0).mean((-2, -1))


def _spread(counts: np.ndarray) -> np.ndarray:
    """Variance over spots of the share of the first category (of the count, where there is one)."""
    total = counts.sum(-1)
    share = counts[..., 0] if counts.shape[-1] == 1 else counts[..., 0] / np.where(total > 0, total, np.nan)
    return np.nanvar(share, -1)


def _largest(counts: np.ndarray) -> np.ndarray:
    return counts.max((-2, -1))


def _variance(values: np.ndarray) -> np.ndarray:
    return values.var(-2).sum(-1)


def _tails(values: np.ndarray) -> np.ndarray:
    """Largest standardised distance from the mean."""
    return (np.abs(values - values.mean(-2, keepdims=True)) / values.std(-2, keepdims=True)).max((-2, -1))


STATISTICS: dict[str, Statistic] = {"zeros": _zeros, "spread": _spread, "largest": _largest}
MEASURED: dict[str, Statistic] = {"variance": _variance, "tails": _tails}


def predictive_check(
    tree: xr.DataTree, *, group: str = "posterior_predictive", statistics: Mapping[str, Statistic] | None = None
) -> pd.DataFrame:
    """Compare statistics of the counts with what the model predicts, one row a gene and statistic.

    Parameters
    ----------
    tree
        Tree with the group asked for.
    group
        ``"posterior_predictive"`` or ``"prior_predictive"``.
    statistics
        Functions of observations ``(..., spots or cells, isoforms or features)``. By default, for counts: share of
        zeros, variance of the first isoform's share (of the count, where there is one) and largest count; for
        measurements: total variance and the largest standardised distance from the mean.

    Returns
    -------
    DataFrame
        ``gene``, ``statistic``, ``observed``, ``mean``, ``lower``, ``upper`` (90 %), and ``pvalue``: chance that the
        statistic is above what was observed, ties counted half. Near 0 or 1 the model cannot make such data.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.posterior import predictive_check
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> tree = model.posterior(num_samples=200, groups=("posterior_predictive",), seed=0)
    >>> predictive_check(tree)[["gene", "statistic"]]
       gene statistic
    0     0     zeros
    1     1     zeros
    2     0    spread
    3     1    spread
    4     0   largest
    5     1   largest
    """
    require(tree, group)
    if is_padded(tree):
        parts = (one_gene(tree, gene) for gene in units_of(tree))
        return pd.concat([predictive_check(p, group=group, statistics=statistics) for p in parts], ignore_index=True)
    drawn, name = _observations(tree, group), observed_name(tree)
    drawn, observed = drawn.reshape(-1, *drawn.shape[2:]), _observations(tree, "observed_data")
    chosen = statistics or (STATISTICS if name == "counts" else MEASURED)
    rows = []
    for label, statistic in chosen.items():
        here, there = statistic(observed), statistic(drawn)
        low, high = np.nanquantile(there, (0.05, 0.95), axis=0)
        chance = (there > here).mean(0) + 0.5 * (there == here).mean(0)
        columns = {"observed": here, "mean": np.nanmean(there, 0), "lower": low, "upper": high, "pvalue": chance}
        rows.append(pd.DataFrame({"gene": units_of(tree), "statistic": label, **columns}))
    return pd.concat(rows, ignore_index=True)


def leave_one_out(tree: xr.DataTree) -> pd.DataFrame:
    r"""Predict each spot from the others, by Pareto-smoothed importance sampling; one row a gene.

    The weights :math:`w_s / p(y_i \mid \cdot_s)` correct for the spot left out and, by the draws' own
    ``log_weight``, for Laplace's approximation. With a random effect at every spot, one spot holds much of what is
    known of its own effect: k̂ is then often above 0.7, and the row says so. Ask
    ``posterior(groups=("left_out", ...))`` for the density with that effect integrated out, given those of the other
    spots, which is used here where the tree has it: k̂ is then rarely high. It asks so little of the draws that
    Laplace's are taken as they are, as ArviZ does: within .011 nats a spot of NUTS in nine genes of depth 1 and 8, σ of
    1 and 2, whatever their ``pareto_k_draws`` (up to .94); with their weights it was no nearer, and k̂ above .7. The
    verdict was *fine* for all of 240 genes of depth 1 to 30, σ of .7 to 2 and θ of .3 to .9 (without: for 0 to 90 %).

    Returns
    -------
    DataFrame
        Index ``gene``: ``elpd``, ``se``, ``p_loo`` (effective number of parameters), ``pareto_k`` (the largest of the
        spots'), ``bad_spots`` (share above 0.7), ``pareto_k_draws`` (of the draws themselves) and ``verdict``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.posterior import leave_one_out
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> tree = model.posterior(num_samples=200, groups=("log_likelihood",), seed=0)
    >>> leave_one_out(tree).columns.tolist()
    ['elpd', 'se', 'p_loo', 'pareto_k', 'bad_spots', 'pareto_k_draws', 'verdict']
    """
    integrated = "left_out" in tree.children
    require(tree, "left_out" if integrated else "log_likelihood")
    found = by_unit(tree["left_out" if integrated else "log_likelihood"][observed_name(tree)])
    density = torch.from_numpy(found.copy()).flatten(0, 1)  # (S, G, N)
    own = _log_weights(tree, density.shape[:2])
    k_hat = pareto_k(own)
    own = torch.zeros_like(own) if integrated else own
    rows = []
    for position, gene in enumerate(units_of(tree)):
        informed = density[:, position]
        varying = (informed != informed[:1]).any(0)  # other spots, such as those without counts, say nothing
        informed = informed[:, varying] if bool(varying.any()) else informed
        ratios = own[:, position, None] - informed
        weights = smoothed(ratios)
        weights = weights - torch.logsumexp(weights, 0)
        each = torch.logsumexp(weights + informed, 0)
        base = torch.log_softmax(own[:, position], 0)
        whole = torch.logsumexp(base[:, None] + informed, 0)
        k = pareto_k(ratios)
        k_draws = float(k_hat[position])
        bad = float((k > RELIABLE).double().mean())
        rows.append(
            {
                "gene": gene,
                "elpd": float(each.sum()),
                "se": float(len(each) ** 0.5 * each.std(correction=0)),
                "p_loo": float((whole - each).sum()),
                "pareto_k": float(k.max()),
                "bad_spots": bad,
                "pareto_k_draws": k_draws,
                "verdict": _loo_verdict(bad, -np.inf if integrated else k_draws),
            }
        )
    return pd.DataFrame(rows).set_index("gene")


def _loo_verdict(bad: float, k_draws: float) -> str:
    if k_draws > RELIABLE:
        return "do not trust: the draws are not from this posterior; use nuts"
    if bad > 0.05:
        return (
            f"do not trust: {bad:.0%} of the spots weigh too much for importance sampling; leave them out by refitting"
        )
    return "fine"


class _OfUsage(Protocol):
    logger: Convergence


@runtime_checkable
class _OfExpression(Protocol):
    results: Any
    gene_names: Any


def convergence_table(model: _OfUsage | _OfExpression) -> pd.DataFrame:
    """Tabulate how fits went, a row a gene: ``converged``, ``n_iter``, ``best_loss``, ``reason``, what it ``means``.

    ``best_loss`` is minus the log density at the best point seen. Models: ``MultinomGLM``, ``MultinomGLMM``,
    ``ExpressionGLM``; the genes of a ``SplisosmGLMM`` are in its ``get_training_summary()``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.posterior import convergence_table
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> convergence_table(model)[["converged", "reason"]]
          converged     reason
    gene
    0          True  converged
    1          True  converged
    """
    if isinstance(model, _OfExpression):
        fit = model.results
        names, words, n_iter, best_loss = model.gene_names, fit.reason, fit.n_iter, -fit.log_likelihood
    else:
        record = model.logger
        names, words, n_iter, best_loss = None, record.reason, record.n_iter.numpy(), record.best_loss.numpy()
    reasons = [Reason(word) for word in words]
    parts = {
        "converged": [reason in OPTIMA for reason in reasons],
        "n_iter": n_iter,
        "best_loss": best_loss,
        "reason": [reason.value for reason in reasons],
        "means": [reason.text for reason in reasons],
    }
    return pd.DataFrame(parts, index=names).rename_axis("gene")


def _log_weights(tree: xr.DataTree, shape: Sequence[int]) -> torch.Tensor:
    """The draws' own log weights (S, G); zero for draws that need none."""
    if tree.attrs["method"] != "laplace":
        return torch.zeros(tuple(shape), dtype=torch.float64)
    return torch.from_numpy(by_unit(tree["sample_stats"]["log_weight"]).copy()).flatten(0, 1)


def observed_name(tree: xr.DataTree) -> str:
    """Name of the observed variable: ``counts``, or ``x`` of a mixture."""
    group = tree["observed_data"] if "observed_data" in tree.children else tree["log_likelihood"]
    return str(next(iter(group.data_vars)))


def _observations(tree: xr.DataTree, group: str) -> np.ndarray:
    """Observed or predicted values ``(..., genes, observations, categories)``."""
    array = tree[group][observed_name(tree)]
    values = by_unit(array)
    own = len(set(array.dims) - {"chain", "draw", "gene"})
    return values if own > 1 else values[..., None]


def require(tree: xr.DataTree, group: str) -> None:
    """Raise :class:`NoResultsError`, saying what to do, unless the tree has the group."""
    if group not in tree.children:
        raise NoResultsError(
            f"{group}: the tree has only {sorted(tree.children)}; ask posterior(groups=...) for it"
            + (" and give the model proper priors." if "prior" in group else ".")
        )
