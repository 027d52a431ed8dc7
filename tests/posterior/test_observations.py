"""What a posterior is asked for: memory it may take, genes by name, and spots that are no observations."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrosplice import ExpressionGLM, GaussianMixture, MultinomGLM, MultinomGLMM, SplisosmGLMM
from pyrosplice._mixture import posterior_tree as mixture_draws
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods import DirichletMultinomial, Multinomial, Poisson
from pyrosplice.posterior import _chains, leave_one_out, one_gene
from pyrosplice.posterior._memory import Kept
from pyrosplice.posterior._tree import GROUPS
from pyrosplice.spatial.car import get_cov_sp

GRID = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))


def usage(*, n_genes=3, n_isos=3, space=False, priors=None, empty=()):
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((n_genes, 36, n_isos), 4.0, dtype=torch.float64), generator=generator)
    for gene, spot in empty:
        counts[gene, spot] = 0
    design = torch.randn(36, 2, generator=generator, dtype=torch.float64)
    options = {"fitting_method": "marginal_newton", "var_fix_sigma": False} if space else {}
    model = (MultinomGLMM if space else MultinomGLM)(priors=priors, **options)
    model.setup_data(counts, *([get_cov_sp(GRID)] if space else []), design_mtx=design)
    model.fit(quiet=True)
    return model


def expression():
    glm = ExpressionGLM("~1+group")
    counts = np.random.default_rng(0).poisson(5, (30, 3)).astype(float)
    glm.fit(pd.DataFrame(counts, columns=["A", "B", "C"]), sample_description=pd.DataFrame({"group": ["a", "b"] * 15}))
    return glm


def analysis():
    """Genes of two and of five isoforms, which one tree pads."""
    adata = simulate_isoforms(n_spots=36, n_genes=4, n_isoforms=5, seed=0)
    kept = (adata.var["gene_symbol"] != "gene_1") | adata.var_names.str.endswith(("_1", "_2"))
    model = SplisosmGLMM("glm")
    model.setup_data(adata[:, kept].copy(), min_counts=0)
    model.fit(print_progress=False)
    return model


def mixture(**options):
    cells = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(2, random_state=0).fit(cells).posterior(cells, num_samples=8, warmup_steps=2, **options)


FAMILIES = {
    "glm": lambda **o: usage().posterior(num_samples=20, **o),
    "glm, priors": lambda **o: usage(priors="weak").posterior(num_samples=20, **o),
    "glmm": lambda **o: usage(space=True).posterior(num_samples=20, **o),
    "glmm, priors": lambda **o: usage(space=True, priors="weak").posterior(num_samples=20, **o),
    "analysis": lambda **o: analysis().posterior(num_samples=20, **o),
    "expression": lambda **o: expression().posterior(num_samples=20, **o),
    "mixture": mixture,
}


@pytest.mark.slow
@pytest.mark.parametrize("groups", [GROUPS, (), ("log_likelihood",)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_is_that_of_what_is_kept(family, groups, monkeypatch):
    """Up to the linear predictor, which is made on the way, and what belongs to no draw."""
    said = []

    def heard(per_draw, n_draws, n_chains=1, **_):
        said.append(8 * n_draws * n_chains * sum(per_draw.values()))
        return Kept(n_draws)

    for module in (_chains, mixture_draws):
        monkeypatch.setattr(module, "draws_within", heard)
    tree = FAMILIES[family](groups=groups)
    datasets = {name: child.to_dataset() for name, child in tree.children.items()}
    fixed = sum(datasets.pop(name).nbytes for name in ("observed_data", "constant_data"))
    kept = sum(value.nbytes for dataset in datasets.values() for value in dataset.data_vars.values())
    assert kept <= 1.02 * said[0] + fixed
    assert said[0] <= 3 * kept + fixed + 8 * 20 * 4 * 36 * 4  # the predictor of four genes of four logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_limit_refuses_before_anything_is_drawn(family):
    with pytest.raises(InvalidArgumentError, match=r"max_memory: .*groups=\(\).*thin.*num_samples.*genes") as refused:
        FAMILIES[family](max_memory="1 kB")
    needed = float(str(refused.value).split("about ")[1].split(" GB")[0]) * 1e9
    FAMILIES[family](max_memory=1.1 * needed)
    FAMILIES[family](max_memory=f"{1.1 * needed / 1e6:.6f} MB")
    with pytest.raises(InvalidArgumentError, match="max_memory"):
        FAMILIES[family](max_memory=0.9 * needed)


@pytest.mark.parametrize("wrong", ["lots", "-1 GB", -3, 0, True, "4 XB", [4]])
def test_what_is_no_amount_of_memory(wrong):
    with pytest.raises(InvalidArgumentError, match=r"max_memory: expected bytes, or text such as '4 GB'"):
        usage(n_genes=1).posterior(num_samples=4, max_memory=wrong)


def test_a_large_default_is_refused_at_once():
    """300 genes × 5,000 spots would take tens of GB; nothing of that is made."""
    model = MultinomGLM()
    model.setup_data(torch.ones(300, 5000, 3))
    with pytest.raises(InvalidArgumentError, match=r"max_memory: 1000 draws need about \d+ GB"):
        model.posterior(max_memory="16 GB")


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "10", None])
@pytest.mark.parametrize("family", ["glm", "expression", "analysis"])
def test_numbers_of_draws(family, wrong):
    model = {"glm": usage, "expression": expression, "analysis": analysis}[family]()
    with pytest.raises(InvalidArgumentError, match="num_samples"):
        model.posterior(num_samples=wrong)


def test_genes_by_name_in_every_family():
    names = {"gene": ["X", "NEAT1", "Z"]}
    model, glm, whole = usage(), expression(), analysis()
    for asked in ("NEAT1", ["NEAT1"], [1], 1, np.array([False, True, False]), torch.tensor([1])):
        tree = model.posterior(num_samples=4, genes=asked, names=names, groups=())
        assert tree["posterior"].gene.values.tolist() == ["NEAT1"]
    assert model.posterior(num_samples=4, genes=["Z", "X"], names=names)["posterior"].gene.values.tolist() == ["Z", "X"]
    assert glm.posterior(num_samples=4, genes=["C"])["posterior"].gene.values.tolist() == ["C"]
    assert whole.posterior("gene_2", num_samples=4)["posterior"].gene.values.tolist() == ["gene_2"]
    for call in (
        lambda: model.posterior(num_samples=4, genes=["NEAT2"], names=names),
        lambda: model.posterior(num_samples=4, genes=["NEAT1"]),
        lambda: model.posterior(num_samples=4, genes=[3]),
        lambda: model.posterior(num_samples=4, genes=[1, 1]),
        lambda: model.posterior(num_samples=4, genes=[]),
        lambda: glm.posterior(num_samples=4, genes=["D"]),
    ):
        with pytest.raises(InvalidArgumentError, match="genes"):
            call()
    with pytest.raises(KeyError, match="gene_9"):
        whole.posterior(["gene_9"], num_samples=4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
@given(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 35)), max_size=12), st.booleans())
@settings(max_examples=8)
def test_spots_without_counts_are_no_observations(empty, everywhere):
    """Leave-one-out is that of the spots with counts, gene by gene, and on the tree of a gene by ArviZ too."""
    empty = {*empty, *((1 - gene, spot) for gene, spot in empty)} if everywhere else empty
    model = usage(n_genes=2, empty=empty)
    tree = model.posterior(num_samples=100, groups=("log_likelihood", "posterior_predictive"))
    ours = leave_one_out(tree)
    for gene in (0, 1):
        covered = [spot for spot in range(36) if (gene, spot) not in empty]
        one = one_gene(tree, gene)
        for group in ("log_likelihood", "observed_data", "posterior_predictive"):
            assert one[group].spot.values.tolist() == covered
        assert one["constant_data"].sizes["spot"] == 36
        alone = leave_one_out(one)
        np.testing.assert_allclose(alone[["elpd", "se", "p_loo"]].iloc[0], ours[["elpd", "se", "p_loo"]].loc[gene])
        stats = pytest.importorskip("arviz_stats")
        if len(covered) == 36 or everywhere:
            assert np.isfinite(float(stats.loo(one).elpd))
    lost = [spot for spot in range(36) if {(0, spot), (1, spot)} <= empty]
    assert tree["log_likelihood"].spot.values.tolist() == [spot for spot in range(36) if spot not in lost]


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
@pytest.mark.parametrize("likelihood", [Multinomial(), DirichletMultinomial(10.0)])
@pytest.mark.parametrize("space", [False, True])
def test_both_generations_of_arviz(likelihood, space):
    stats, legacy = pytest.importorskip("arviz_stats"), pytest.importorskip("arviz")
    counts = torch.poisson(torch.full((1, 36, 3), 4.0, dtype=torch.float64), generator=torch.Generator().manual_seed(1))
    counts[:, [0, 7, 35]] = 0
    options = {"fitting_method": "marginal_newton"} if space else {}
    model = (MultinomGLMM if space else MultinomGLM)(likelihood=likelihood, **options)
    model.setup_data(counts, *([get_cov_sp(GRID)] if space else []))
    model.fit(quiet=True)
    tree = model.posterior(num_samples=200)
    for given_tree in (tree, one_gene(tree, 0)):
        new = stats.loo(given_tree)
        old = legacy.loo(legacy.InferenceData.from_datatree(given_tree))
        assert new.n_data_points == old.n_data_points == 33
        assert float(new.elpd) == pytest.approx(float(old.elpd_loo), abs=0.2)
    stats.loo_pit(one_gene(tree, 0, isoform=0))


def test_zero_counts_inform_where_totals_are_random():
    counts = torch.zeros(1, 30, 1, dtype=torch.float64)
    counts[0, :12] = 1
    model = MultinomGLM(likelihood=Poisson())
    model.setup_data(counts)
    model.fit(quiet=True)
    tree = model.posterior(num_samples=50)
    assert tree["log_likelihood"].sizes["spot"] == one_gene(tree, 0)["log_likelihood"].sizes["spot"] == 30


def test_a_tree_of_batches_has_every_spot_of_its_genes():
    """Genes of different numbers of isoforms are drawn apart, with other empty spots."""
    adata = simulate_isoforms(n_spots=36, n_genes=2, n_isoforms=3, seed=0)
    kept = (adata.var["gene_symbol"] != "gene_1") | adata.var_names.str.endswith(("_1", "_2"))
    adata = adata[:, kept].copy()
    table, first = adata.layers["counts"].toarray(), (adata.var["gene_symbol"] == "gene_1").to_numpy()
    table[np.ix_([3, 5], first)] = 0
    table[np.ix_([4, 5], ~first)] = 0
    adata.layers["counts"] = table
    model = SplisosmGLMM("glm")
    model.setup_data(adata, min_counts=0)
    model.fit(print_progress=False)
    tree = model.posterior(num_samples=20, groups=("log_likelihood",))
    assert tree["log_likelihood"].spot.values.tolist() == [name for name in adata.obs_names if name != "spot_6"]
    assert tree["log_likelihood"].counts.notnull().all()
    assert one_gene(tree, "gene_1")["log_likelihood"].sizes["spot"] == int((table[:, first].sum(1) > 0).sum())
