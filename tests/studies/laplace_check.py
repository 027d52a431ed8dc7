"""What Laplace's draws say about themselves, at 1, 5 and 20 counts a spot.

    python -m tests.studies.laplace_check [--genes 20] [--seed 2]

The genes of :mod:`tests.studies.laplace_nuts` of another seed (other ones than those of the table, as there),
hyper-parameters integrated over, 4,000 draws; NUTS is not run. Writes one row a gene to ``results/laplace_check.csv``,
and prints how many are found to be off.
"""

import argparse

import pandas as pd

from pyrosplice.posterior import laplace_check, laplace_shifts
from tests.studies.laplace_nuts import model_of
from tests.studies.simulation import RESULTS, commit

DEPTHS, N_DRAWS = (1.0, 5.0, 20.0), 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=2, help="of the data")
    given = parser.parse_args()
    tables = []
    for depth in DEPTHS:
        model = model_of(given.genes, depth, seed=given.seed)
        tree = model.posterior(num_samples=N_DRAWS, hyper="integrate", groups=())
        found = laplace_check(tree)
        tables.append(found.reset_index().assign(depth=depth, seed=given.seed, commit=commit()))
        print(f"{depth:g} a spot:", found["verdict"].str.split(":").str[0].value_counts().to_dict())
        print(laplace_shifts(tree).groupby("site")[["shift", "shift_error", "sd_ratio"]].mean().round(3).to_string())
    RESULTS.mkdir(exist_ok=True)
    pd.concat(tables).to_csv(RESULTS / "laplace_check.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
