"""Shrunken fold changes beside DESeq2's and apeglm's, on the same simulated genes, against the truth.

    python tests/benchmarks/shrinkage.py --rscript Rscript --peers-python /path/to/venv/bin/python

Samples of two groups, means log-uniform over 2..2,000, dispersion 0.1 + 4 / mean, log2 fold changes: zero for most
genes and normal (sd 1), or t with 3 degrees of freedom (heavy tails) for the rest. DESeq2 (R, ``type="normal"``) and
pydeseq2's ``lfc_shrink``, which is apeglm's method, run in interpreters of their own; without them this library runs
alone. Printed: root mean squared error over all genes, over those without and with an effect, correlation with the
truth, and seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from pyrosplice._expression.expression_glm import ExpressionGLM

R_SCRIPT = """
suppressMessages(library(DESeq2)); a <- commandArgs(TRUE)
y <- as.matrix(read.csv(a[1], row.names=1)); g <- read.csv(a[2], row.names=1)
d <- DESeqDataSetFromMatrix(t(y), data.frame(group=factor(g$group)), ~group)
t0 <- proc.time()[1]; d <- DESeq(d, quiet=TRUE)
mle <- results(d)$log2FoldChange
s <- lfcShrink(d, coef="group_b_vs_a", type="normal", quiet=TRUE)$log2FoldChange
write.csv(data.frame(deseq2_mle=mle, deseq2_normal=s, seconds=proc.time()[1] - t0), a[3], row.names=FALSE)
"""

PY_SCRIPT = """
import sys, time, warnings; warnings.simplefilter("ignore")
import pandas as pd
from pydeseq2.dds import DeseqDataSet
from pydeseq2.ds import DeseqStats
y, g = (pd.read_csv(p, index_col=0) for p in sys.argv[1:3])
start = time.process_time()
dds = DeseqDataSet(counts=y.astype(int), metadata=g, design="~group", quiet=True); dds.deseq2()
stats = DeseqStats(dds, contrast=["group", "b", "a"], quiet=True); stats.summary()
mle = stats.results_df["log2FoldChange"].to_numpy()
name = [c for c in stats.LFC.columns if c.startswith("group")][0]
stats.lfc_shrink(coeff=name)
out = pd.DataFrame({"pydeseq2_mle": mle, "apeglm": stats.results_df["log2FoldChange"].to_numpy()})
out["seconds"] = time.process_time() - start
out.to_csv(sys.argv[3], index=False)
"""


def simulated(
    genes: int, samples: int, share: float, heavy: bool, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Counts (samples × genes), the samples' groups, and the true log2 fold changes."""
    rng = np.random.default_rng(seed)
    effect = rng.standard_t(3, genes) * 0.6 if heavy else rng.normal(0, 1, genes)
    truth = np.where(rng.random(genes) < share, effect, 0.0)
    mean = np.exp(rng.uniform(np.log(2), np.log(2000), genes))
    dispersion = (0.1 + 4 / mean) * np.exp(rng.normal(0, 0.4, genes))
    treated = np.arange(samples) % 2
    rate = rng.lognormal(0, 0.2, samples)[:, None] * mean * 2 ** (truth * treated[:, None])
    y = rng.poisson(rng.gamma(1 / dispersion, dispersion * rate))
    y[0, y.sum(0) == 0] = 1
    names = [f"s{i}" for i in range(samples)]
    table = pd.DataFrame({"group": np.where(treated, "b", "a")}, index=names)
    return pd.DataFrame(y, index=names, columns=[f"g{j}" for j in range(genes)]), table, truth


def size_factors(y: np.ndarray) -> np.ndarray:
    """Median of ratios to the geometric means of genes seen in every sample, as the peers'."""
    seen = (y > 0).all(0)
    logs = np.log(y[:, seen])
    return np.exp(np.median(logs - logs.mean(0), axis=1))


def ours(y: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    start = time.process_time()
    obs = table.assign(size=size_factors(y.to_numpy()))
    glm = ExpressionGLM("~1+group").fit(y.to_numpy(float), sample_description=obs, size_factors="size")
    shrunk = glm.shrink("group[T.b]")
    held = glm.shrink("group[T.b]", dispersions="shrunken")["log2fc"]
    out = pd.DataFrame({"ours_mle": shrunk["effect_mle"], "ours_fitted": shrunk["effect"], "ours_shrunken": held})
    return out.assign(seconds=time.process_time() - start)


def peer(command: list[str], script: str, suffix: str, y: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("counts.csv", "groups.csv", "out.csv")]
        code = Path(folder) / f"peer{suffix}"
        code.write_text(script)
        y.to_csv(paths[0])
        table.to_csv(paths[1])
        subprocess.run([*command, str(code), *map(str, paths)], check=True, capture_output=True)
        return pd.read_csv(paths[2])


def row(name: str, estimate: np.ndarray, truth: np.ndarray, seconds: float) -> dict:
    good = np.isfinite(estimate) & (np.abs(estimate) < 30)
    error, null = (estimate - truth)[good], truth[good] == 0
    rms = {
        "all": error,
        "no effect": error[null],
        "effect": error[~null],
        "effect > 2": error[np.abs(truth[good]) > 2],
    }
    return {
        "estimate": name,
        "genes": int(good.sum()),
        **{f"rmse, {k}": float(np.sqrt(np.square(e).mean())) if len(e) else np.nan for k, e in rms.items()},
        "correlation": float(np.corrcoef(estimate[good], truth[good])[0, 1]),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rscript")
    parser.add_argument("--peers-python")
    args = parser.parse_args()
    for samples, share, heavy in ((6, 0.2, False), (6, 0.2, True), (20, 0.2, False), (20, 0.5, True)):
        y, table, truth = simulated(args.genes, samples, share, heavy, args.seed)
        tables = [ours(y, table)]
        if args.rscript:
            tables.append(peer([args.rscript], R_SCRIPT, ".R", y, table))
        if args.peers_python:
            tables.append(peer([args.peers_python], PY_SCRIPT, ".py", y, table))
        rows = [
            row(name, found[name].to_numpy(), truth, float(found["seconds"].iloc[0]))
            for found in tables
            for name in found.columns.drop("seconds")
        ]
        effects = "t, 3 degrees of freedom, times 0.6" if heavy else "normal, sd 1"
        print(f"\n{samples} samples, {share:.0%} of {args.genes} genes with an effect ({effects}), seed {args.seed}")
        print(pd.DataFrame(rows).to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
