"""Draw the picture of the README and of the site: ``python tools/draw_overview.py docs/_static/overview.png``.

Three simulated data sets, each fitted by the library: the usage of an isoform over a tissue, the effects of a drug on
genes in cells of donors, and the states of cells.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrosplice import ExpressionGLM, GaussianMixture, SplisosmGLMM, plotting
from pyrosplice.data import simulate_expression, simulate_isoforms


def draw_usage(counted: Axes, fitted: Axes) -> None:
    """Draw the usage of an isoform at each spot, as counted and as fitted."""
    adata = simulate_isoforms(n_spots=900, n_genes=1, theta=0.95, sigma=1.2, seed=3)
    model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False, isoform_effect="symmetric")
    model.setup_data(adata)
    model.fit(quiet=True, print_progress=False)
    result = model.get_fitted_ratios_anndata()
    table = plotting.usage_table(result, list(result.var_names))
    own = table[table["isoform"] == result.var_names[0]]
    for ax, column, title in ((counted, "raw", "isoform usage, as counted"), (fitted, "fitted", "as fitted")):
        ax.scatter(own["x"], own["y"], c=own[column], s=36, marker="s", linewidths=0, cmap="viridis", vmin=0, vmax=1)
        ax.set(title=title, aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def draw_effects(ax: Axes) -> None:
    """Draw the effects of a drug on genes, with the donors as units."""
    cells = pd.DataFrame({"donor": np.repeat([f"D{donor}" for donor in range(8)], 60)})
    cells["drug"] = np.where(np.arange(len(cells)) % 60 < 30, "control", "treated")
    rng = np.random.default_rng(0)
    effect = np.where(rng.random(120) < 0.25, rng.normal(0, 0.8, 120), 0.0)  # of a quarter of the genes
    mean = 2.0 * np.exp((cells["drug"] == "treated").to_numpy()[:, None] * effect)
    adata = simulate_expression(cells, n_genes=120, mean=mean, donors="donor", donor_sd=0.4, seed=0)
    table = ExpressionGLM("~ drug + (1 + drug | donor)").fit(adata).test(factor="drug").summary()
    plotting.volcano(table, ax=ax, n_labels=0)
    entitle(ax, "a drug's effects, donors as units")


def draw_states(ax: Axes) -> None:
    """Draw cells and the Gaussians that describe them."""
    rng = np.random.default_rng(1)
    centers, shapes = (
        ([0, 0], [3.5, 1], [1, 4]),
        ([[1, 0.6], [0.6, 0.8]], [[0.6, -0.3], [-0.3, 0.9]], [[1.1, 0], [0, 0.3]]),
    )
    x = np.concatenate([rng.multivariate_normal(m, c, 250) for m, c in zip(centers, shapes, strict=True)])
    states = GaussianMixture(num_components=3, covariance_type="full", random_state=0).fit(x)
    found = states.model_
    plotting.mixture_components(x, found.component_probs, found.means, found.covariances, ax=ax)
    entitle(ax, "states of cells")


def entitle(ax: Axes, title: str) -> None:
    """Put a title where a figure has its legend: the picture is to be read at a glance."""
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    ax.set_title(title)


def main(arguments: list[str]) -> int:
    """Draw all panels, and write them to a file."""
    figure, axes = plt.subplots(1, 4, figsize=(13.0, 3.3), layout="constrained", width_ratios=[1, 1, 1.25, 1.1])
    draw_usage(axes[0], axes[1])
    draw_effects(axes[2])
    draw_states(axes[3])
    figure.savefig(Path(arguments[0]), dpi=100)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
