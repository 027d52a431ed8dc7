"""Size and power of Box's F between units by the library's ε, and by what else was considered, on normal effects.

    python -m tests.studies.sphericity [--draws 100000]

Q predictors of a gene whose effects vary between units with variances λ ("equal", "one": others nil, "tenth" and
"third": one beside others of .1 and .3), a contrast of one coefficient in each, ν degrees of freedom between units.
``epsilon``: the library's; "unbiased", the quotient of the unbiased estimates of numerator and denominator (Huynh and
Feldt 1976, Lecoutre 1991); "one": 1 throughout. ``power``: share below .05 where one predictor is shifted by three
standard errors. The table goes to tests/studies/results/sphericity.csv.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f

from pyrosplice._hypothesis.coefficients.sphericity import sphericity
from tests.studies.simulation import commit, save_row

Array = NDArray[np.float64]
SPECTRA = {"equal": 1.0, "one": 0.0, "tenth": 0.1, "third": 0.3}
LEVELS = (0.05, 0.01, 0.001)


def unbiased(variation: Array, df: int) -> Array:
    """ε by unbiased estimates of its numerator and denominator."""
    q = variation.shape[-1]
    effective = np.trace(variation, axis1=1, axis2=2) ** 2 / np.einsum("gij,gji->g", variation, variation)
    left = df - effective
    return np.clip(np.where(left > 1e-9, ((df + 1) * effective - 2) / (q * np.maximum(left, 1e-9)), 1.0), 1 / q, 1.0)


def pvalues(q: int, df: int, others: float, n_draws: int, shift: float, rng: np.random.Generator) -> dict[str, Array]:
    """P-values by ε of genes, the first predictor of which is shifted."""
    sd = np.sqrt(np.array([1.0] + [others] * (q - 1)))
    units = rng.standard_normal((n_draws, df, q)) * sd
    variation = np.einsum("guq,gur->gqr", units, units) / df
    estimate = rng.standard_normal((n_draws, q)) * sd
    estimate[:, 0] += shift
    statistic = np.square(estimate).sum(1) / np.trace(variation, axis1=1, axis2=2)
    shares = {"library": sphericity(variation, df), "unbiased": unbiased(variation, df), "one": np.ones(n_draws)}
    return {name: f.sf(statistic, q * share, q * df * share) for name, share in shares.items()}


def main(n_draws: int) -> None:
    at = commit()
    for df in (2, 3, 4, 6, 10, 30):
        for q in (2, 3, 5):
            for name, others in SPECTRA.items():
                seed = 1000 * df + 10 * q + list(SPECTRA).index(name)
                rng = np.random.default_rng(seed)
                null = pvalues(q, df, others, n_draws, 0.0, rng)
                shifted = pvalues(q, df, others, n_draws, 3.0, rng)
                for epsilon, pvalue in null.items():
                    row = {"predictors": q, "df": df, "variances": name, "epsilon": epsilon}
                    row |= {f"at {level}": round(float((pvalue < level).mean()), 5) for level in LEVELS}
                    row |= {"power": round(float((shifted[epsilon] < 0.05).mean()), 4)}
                    save_row("sphericity", {**row, "draws": n_draws, "seed": seed, "commit": at}, list(row)[:4])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100_000)
    main(parser.parse_args().draws)
