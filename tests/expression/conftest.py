"""A small data set with three groups, two halves, nine donors and a gene without counts."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import pyrosplice.api as de

N_CELLS, N_GENES, EMPTY = 90, 6, 4


@pytest.fixture(scope="session")
def cells():
    rng = np.random.default_rng(5)
    obs = pd.DataFrame(
        {
            "group": np.tile(["a", "b", "c"], 30),
            "half": np.tile(["u", "v"], 45),
            "part": np.repeat(["p", "q"], 45),
            "donor": np.repeat([f"d{i}" for i in range(9)], 10),
            "treated": np.repeat(["no", "yes", "no"], 30),
            "t": rng.uniform(0, 4, N_CELLS),
            "depth": rng.uniform(0.3, 3.0, N_CELLS),
        },
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    mean = np.exp(rng.normal(1.5, 0.3, N_GENES)) * (1 + (obs["group"] == "b").to_numpy()[:, None] * [1, 0, 0, 0, 0, 0])
    x = rng.poisson(rng.gamma(3.0, mean / 3.0) * obs["depth"].to_numpy()[:, None]).astype(float)
    x[:, EMPTY] = 0
    var = pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)])
    return ad.AnnData(x, obs, var, layers={"double": 2 * x})


def every_test(data, **options):
    """Each test of the namespace on the same cells, as calls without arguments."""
    calls = {}
    for test in ("t-test", "rank", "wald", "lrt"):
        calls[f"two_sample {test}"] = lambda test=test: de.test.two_sample(data, "half", test=test, **options)
        calls[f"versus_rest {test}"] = lambda test=test: de.test.versus_rest(data, "group", test=test, **options)
        calls[f"pairwise {test}"] = lambda test=test: de.test.pairwise(data, "group", test=test, **options)
        calls[f"partition {test}"] = lambda test=test: de.test.partition(data, "part").two_sample(
            grouping="half", test=test, **options
        )
    calls["pairwise z-test"] = lambda: de.test.pairwise(data, "group", **options)
    calls["t_test"] = lambda: de.test.t_test(data, "half", **options)
    calls["rank_test"] = lambda: de.test.rank_test(data, "half", **options)
    calls["wald"] = lambda: de.test.wald(data, "group", formula_loc="~1+group", **options)
    calls["lrt"] = lambda: de.test.lrt(data, "~1+group", "~1", **options)
    calls["score"] = lambda: de.test.score(data, "group", formula_loc="~1+group", **options)
    calls["continuous_1d wald"] = lambda: de.test.continuous_1d(data, "t", df=3, **options)
    calls["continuous_1d lrt"] = lambda: de.test.continuous_1d(data, "t", df=3, test="lrt", **options)
    calls["partition.wald"] = lambda: de.test.partition(data, "part").wald(
        factor_loc_totest="group", formula_loc="~1+group", **options
    )
    calls["partition.lrt"] = lambda: de.test.partition(data, "part").lrt(
        full_formula_loc="~1+group", reduced_formula_loc="~1", **options
    )
    calls["partition.t_test"] = lambda: de.test.partition(data, "part").t_test(grouping="half", **options)
    calls["partition.rank_test"] = lambda: de.test.partition(data, "part").rank_test(grouping="half", **options)
    return calls
