"""Every test of isoform usage on the families of the mouse olfactory bulb, beside the peer package's.

    python -m tests.studies.real_data table    [--peer /path/to/python] [--depth thinned]
    python -m tests.studies.real_data permuted [--peer /path/to/python] [--replicates 20] [--only space peer]
    python -m tests.studies.real_data permuted --repeat 1

``table``: p-values of each family by each method, raw and thinned, with what a disagreement comes from; each covariate
without the others. ``permuted``: rows of counts exchanged between the spots, a new order for every family and
replicate; their p-values should be uniform. Tables go to tests/studies/results/. Needs the shared data, and says so
where they are not there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.stats import kstest

from tests.paths import SHARED
from tests.studies import bulb
from tests.studies.bulb import LAYERS, NO_PEER
from tests.studies.bulb_explained import instead, wide
from tests.studies.simulation import RESULTS, commit, save_row

SEED = 3
RUNS = ("space", "usage", "usage-averaged", "usage-each-logit", "llr", "wald-lrt", "peer")


def table_study(peer: str | None, folder: Path | None, depths: Collection[str]) -> None:
    """The table of each depth; parts that ``folder`` has already are read, the others computed and put there."""
    at = commit()
    for depth in depths:
        adata, read = bulb.olfactory_bulb(depth), partial(_part, folder, depth)
        parts = {"peer": read("peer", partial(bulb.peers, adata, peer)) if peer else NO_PEER}
        parts["sv"] = read("sv", partial(bulb.variability, adata, everything=True))
        parts["du"] = read("du", partial(bulb.differential, adata))
        parts["instead"] = read("instead", partial(instead, adata, parts["peer"], parts["du"]))
        version = "".join(parts["peer"]["peer"].unique())
        found = wide(parts).assign(layer=depth, peer=version, commit=at)
        found.to_csv(RESULTS / f"real_data_{depth}.csv", index=False, float_format="%.4g")
        print(depth, len(found), "rows,", int((found["explanation"] != "").sum()), "with a disagreement", flush=True)


def _part(folder: Path | None, depth: str, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    if folder is None:
        return make()
    path = folder / f"{name}_{depth}.csv"
    if not path.exists():
        make().to_csv(path, index=False)
    found = pd.read_csv(path, dtype={"gene": str})
    return found.assign(covariate=found["covariate"].fillna(""))


def uniformity(pvalue: np.ndarray) -> dict[str, float]:
    """Kolmogorov–Smirnov p-value against the uniform law, and rates."""
    tested = pvalue[np.isfinite(pvalue)]
    rates = {f"size {level:g}": (tested < level).mean() for level in (0.05, 0.01)}
    return {
        "pvalues": len(tested),
        "KS p": kstest(tested, "uniform").pvalue,
        **rates,
        "equal to 1": (tested == 1).mean(),
    }


def permuted_runs(
    adata: ad.AnnData, n_replicates: int, seed: int, peer: str | None
) -> dict[str, Callable[[], pd.DataFrame]]:
    """Ratio tests, which fit more models, on a third of the replicates; the score test of space on ten times those."""
    some, few = (bulb.permuted(adata, n, seed) for n in (n_replicates, max(1, n_replicates // 3)))
    runs = {
        "space": lambda: bulb.scores_of_space(bulb.permuted(adata, 10 * n_replicates, seed)),
        "usage": lambda: bulb.together(some, ("score",)),
        "usage-averaged": lambda: bulb.together(some, ("score", "wald"), law="averaged"),
        "usage-each-logit": lambda: bulb.together(some, ("score",), share_variance=False),
        "llr": lambda: bulb.variability(few, everything=False).query("method == 'llr'"),
        "wald-lrt": lambda: bulb.together(few, ("wald", "lrt")),
    }
    return runs | ({"peer": lambda: bulb.peers(some, peer, fast=True)} if peer else {})


def permuted_study(peer: str | None, n_replicates: int, repeat: int | None, only: Collection[str] | None) -> None:
    """All tests or some, or for ``repeat`` the score test of usage alone, on other permutations."""
    at, table, key = commit(), "real_data_permuted", ["depth", "method", "covariate"]
    if repeat is not None:
        table, key = f"{table}_repeat", [*key, "repeat"]
    for position, depth in enumerate(LAYERS):
        seed, adata = 10 * SEED + position + 1000 * (repeat or 0), bulb.olfactory_bulb(depth)
        runs = permuted_runs(adata, n_replicates, seed, peer)
        names = ("usage",) if repeat is not None else only or runs
        for found in (runs[name]() for name in names):
            for (method, covariate), tests in found.groupby(["method", "covariate"]):
                row = {"depth": depth, "method": method, "covariate": covariate or "space"}
                row |= {"replicates": tests["gene"].str.rpartition("/")[2].nunique()}
                row |= {**uniformity(tests["pvalue"].to_numpy()), "seed": seed, "commit": at}
                row |= {"peer": tests["peer"].iloc[0]} if "peer" in tests else {}
                row |= {} if repeat is None else {"repeat": repeat}
                save_row(table, row, key)
                print({k: round(float(v), 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=["table", "permuted"])
    parser.add_argument("--peer", help="interpreter that has the peer package")
    parser.add_argument("--replicates", type=int, default=20)
    parser.add_argument(
        "--repeat", type=int, help="score tests of usage on other permutations, in a table of their own"
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, help="some tests of the permuted rows")
    parser.add_argument(
        "--parts", type=Path, help="folder of p-values that are there already, and for those that are not"
    )
    parser.add_argument("--depth", choices=LAYERS, help="the table of one depth alone")
    given = parser.parse_args()
    if given.only and (given.study == "table" or given.repeat is not None):
        parser.error("--only goes with permuted, without --repeat.")
    if given.only and "peer" in given.only and not given.peer:
        parser.error("--only peer needs --peer, the interpreter that has the package.")
    if given.depth and given.study == "permuted":
        parser.error("--depth goes with table.")
    if not (SHARED / "data" / "mob_rep11_families.h5ad").exists():
        parser.exit(message="The shared data are not there; nothing was done.\n")
    if given.study == "table":
        table_study(given.peer, given.parts, [given.depth] if given.depth else list(LAYERS))
    else:
        permuted_study(given.peer, given.replicates, given.repeat, given.only)
