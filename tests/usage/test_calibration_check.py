"""Checks of calibration on a person's own data: what is drawn, what is tested, what is said, what is refused."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from joblib import parallel_config
from scipy.stats import binomtest

from pyrosplice import SplisosmGLMM
from pyrosplice._usage.analysis.null_genes import Space, Truth, observed_isoforms
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError, NotReadyError, NotStatedError
from pyrosplice.likelihoods import DirichletMultinomial, Likelihood, Multinomial
from pyrosplice.spatial._covariance import SpatialCovariance
from pyrosplice.spatial._domains import graph_domains
from pyrosplice.testing import Domains
from tests.studies.simulation import grid
from tests.usage.conftest import tissue_of

SOON = {"print_progress": False}


def fitted(adata=None, model_type="glmm-full", *, design=("smooth", "half"), with_design=False, setup=None, **options):
    adata = tissue_of(seed=1, covariates=("smooth",)) if adata is None else adata
    if model_type != "glm":
        options = {"fitting_method": "marginal_newton", "var_fix_sigma": False} | options
    model = SplisosmGLMM(model_type, **options)
    model.setup_data(adata, design_mtx=None if design is None else list(design), **(setup or {}))
    model.fit(with_design_mtx=with_design, batch_size=8, **SOON)
    return model


@pytest.fixture(scope="module")
def model():
    return fitted(tissue_of((3, 2, 2), seed=1, covariates=("smooth",)), design=("smooth",))


@pytest.fixture(scope="module")
def fixed():
    """Without a random effect, which is quick, and with a factor."""
    return fitted(model_type="glm")


class Counted(SplisosmGLMM):
    """Notes the genes that it was asked to test; space has p-values that are too small, by a known amount."""

    seen: list = []  # noqa: RUF012

    def test_spatial_variability(self, *args, **options):
        Counted.seen.append(self.filtered_adata.X.toarray())
        results = super().test_spatial_variability(*args, **options)
        return {**results, "pvalue": results["pvalue"] ** 1.5}


def test_drawn_genes_have_the_places_and_depths_of_the_persons_own_to_the_count(model):
    check = model.check_calibration("sv", n_genes=7, seed=4, **SOON)
    assert sorted(check.pvalues["source"].value_counts()) == [2, 2, 3]  # each as often as the others
    own = dict(zip(model.gene_names, model.n_isos_per_gene, strict=True))
    assert (check.pvalues["n_isoforms"] <= check.pvalues["source"].map(own)).all()
    adata = tissue_of(seed=1, covariates=("smooth",))
    counted = Counted(fitting_method="marginal_newton", var_fix_sigma=False)
    counted.setup_data(adata)
    counted.fit(batch_size=8, **SOON)
    Counted.seen = []
    found = counted.check_calibration("sv", n_genes=12, seed=4, **SOON)
    matrix, start = Counted.seen[-1], 0  # the first is the gene that options are tried on
    assert len(Counted.seen) == 2
    given = adata.layers["counts"].toarray()
    for source, n_isoforms in zip(found.pvalues["source"], found.pvalues["n_isoforms"], strict=True):
        own = given[:, (adata.var["gene_symbol"] == source).to_numpy()].sum(1)
        np.testing.assert_array_equal(matrix[:, start : start + n_isoforms].sum(1), own)
        start += n_isoforms
    assert start == matrix.shape[1]


def test_the_same_seed_gives_the_same_numbers_for_any_number_of_processes(model, fixed):
    once = fixed.check_calibration(n_genes=40, seed=2, **SOON).pvalues
    torch.rand(3)  # the global generator has no part in it
    with parallel_config("threading"):
        again = fixed.check_calibration(n_genes=40, seed=2, n_jobs=2, **SOON).pvalues
        space = model.check_calibration("sv", n_genes=40, n_jobs=2, **SOON).pvalues
    pd.testing.assert_frame_equal(once, again)
    pd.testing.assert_frame_equal(space, model.check_calibration("sv", n_genes=40, **SOON).pvalues)
    other = fixed.check_calibration(n_genes=40, seed=3, **SOON).pvalues
    assert not np.allclose(once["statistic"], other["statistic"])


def state_of(model):
    values = [value.clone() for gene in model.analysis.fit.genes for value in gene.values.values()]
    return (
        values,
        dict(model.analysis.test_fits),
        dict(model.analysis.results["sv"]),
        model.fitting_configs,
        set(model._prepared._solvers),
    )


def test_the_model_stays_as_it_is():
    adata = tissue_of((3, 2), seed=1, covariates=("smooth",))
    model = fitted(adata, design=("smooth",), fitting_method="joint_newton", var_fix_sigma=True)
    model.test_spatial_variability("score", **SOON)
    before, adata, generator = state_of(model), model.adata, torch.get_rng_state()
    model.check_calibration(n_genes=2, **SOON)
    after = state_of(model)
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1].keys() == after[1].keys() and before[3:] == after[3:] and model.adata is adata
    assert before[2]["pvalue"] is after[2]["pvalue"]
    assert torch.equal(generator, torch.get_rng_state())


def test_a_loaded_model_says_the_same(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = SplisosmGLMM.load(tmp_path / "model")
    ask = {"n_genes": 4, "seed": 1, **SOON}
    pd.testing.assert_frame_equal(loaded.check_calibration(**ask).pvalues, model.check_calibration(**ask).pvalues)


def test_pvalues_that_are_too_small_are_found_and_right_ones_hold():
    wrong = Counted(fitting_method="marginal_newton", var_fix_sigma=False)
    wrong.setup_data(simulate_isoforms(n_spots=49, n_genes=4, depth=5.0, theta=0.0, seed=2))
    wrong.fit(batch_size=4, **SOON)
    found, right = (one.check_calibration("sv", n_genes=600, **SOON) for one in (wrong, as_its_parent(wrong)))
    assert not found.holds and "rejects too often" in str(found)
    assert right.holds and ": holds" in str(right)
    low = found.table.iloc[0]
    assert low["lower"] > 0.05
    np.testing.assert_allclose(found.pvalues["pvalue"], right.pvalues["pvalue"] ** 1.5)  # the same genes


def as_its_parent(model):
    """The parent's tests on the same fits."""
    other = SplisosmGLMM()
    vars(other).update(vars(model))
    return other


def test_table_counts_and_its_intervals_are_exact(model):
    check = model.check_calibration("sv", n_genes=60, confidence=0.9, **SOON)
    tested = check.pvalues["pvalue"].dropna()
    for row in check.table.itertuples():
        assert row.rejected == (tested < row.level).sum() and row.genes == len(tested)
        assert row.genes + row.missing == 60
        expected = binomtest(row.rejected, row.genes).proportion_ci(0.9, method="exact")
        np.testing.assert_allclose([row.lower, row.upper], expected, rtol=1e-9)


@pytest.mark.slow
def test_every_test_and_method_gives_a_row_for_every_covariate(model, fixed):
    check = fixed.check_calibration("du", n_genes=6, method=("score", "wald", "lrt"), **SOON)
    names = {(test, covariate) for test in ("DU score", "DU wald", "DU lrt") for covariate in fixed.covariate_names}
    assert set(zip(check.table["test"], check.table["covariate"], strict=True)) == names
    ratio = model.check_calibration("sv", n_genes=3, method=("score", "llr"), **SOON)
    assert set(ratio.table["test"]) == {"SV score", "SV llr"} and len(ratio.sentences) == 2
    mixed = model.check_calibration("du", n_genes=3, method=("score", "wald"), **SOON)
    assert set(mixed.table["test"]) == {"DU score", "DU wald"}
    joint = fixed.check_calibration("du", n_genes=6, by="factor", **SOON)
    assert set(joint.table["covariate"]) == {"smooth", "half"}
    contrast = fixed.check_calibration("du", n_genes=6, method="wald", contrasts={"both": {"smooth": 1}}, **SOON)
    assert set(contrast.table["covariate"]) == {"both"}


def test_power_is_measured_at_the_effect_one_covariate_at_a_time(model, fixed):
    check = fixed.check_calibration("du", n_genes=30, effect=3.0, **SOON)
    power = check.table[(check.table["rate"] == "power") & (check.table["level"] == 0.05)]
    size = check.table[(check.table["rate"] == "size") & (check.table["level"] == 0.05)]
    assert list(power["covariate"]) == fixed.covariate_names and (power["effect"] == 3.0).all()
    assert (power["share"].to_numpy() > size["share"].to_numpy() + 0.3).all()
    space = model.check_calibration("sv", n_genes=30, effect=3.0, **SOON).table
    assert space[space["rate"] == "power"]["share"].iloc[0] > 0.3
    assert "power for an effect of 2" in str(model.check_calibration("sv", n_genes=3, effect=2.0, **SOON))


def test_domains_are_connected_random_and_of_the_asked_sd():
    graph = grid(12).adjacency
    rng = np.random.default_rng(0)
    labels = graph_domains(graph, 5, rng)
    assert len(np.unique(labels)) == 5 and not np.array_equal(labels, graph_domains(graph, 5, rng))
    for domain in range(5):
        inside = labels == domain
        assert sp.csgraph.connected_components(graph[inside][:, inside], directed=False)[0] == 1
    pieces = sp.block_diag([graph, graph, graph]).tocsr()
    assert len(np.unique(graph_domains(pieces, 1 + 1, rng))) >= 3  # a piece without a centre is a domain
    space = Space(None, graph, Domains(6))
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([space.draw(torch.tensor([0.5, 2.0]), 144, rng, generator) for _ in range(300)])
    np.testing.assert_allclose(draws.std((0, 1)), [0.5, 2.0], rtol=0.08)
    assert all(len(torch.unique(draw[:, 0])) == 6 for draw in draws)


def test_domains_are_size_for_covariates_and_power_for_space(model):
    check = model.check_calibration(n_genes=3, truth="domains", **SOON)
    assert dict(zip(check.table["test"], check.table["rate"], strict=True)) == {"SV score": "power", "DU score": "size"}
    assert "variation by domains" in check.sentences[0] and "null genes" in check.sentences[1]
    space = model.check_calibration("sv", n_genes=30, truth=Domains(3, sd=3.0), **SOON).table
    assert space["share"].iloc[0] > 0.3


def test_what_is_true_has_the_moments_of_the_fit():
    """Logits of a truth with many molecules: mean, variance, and correlation of neighbours."""
    model = fitted(tissue_of((3,), seed=1), design=None)
    gene, covariance = model.analysis.fit.genes[0], model.sp_kernel
    gene = gene.with_values(sigma=torch.tensor([0.8]).double(), theta_logit=torch.logit(torch.tensor([0.7])).double())
    totals = torch.full((36,), 2e3, dtype=torch.float64)
    truth = Truth([gene], [totals], None, Multinomial(), Space(model._prepared.solver(None, "cpu")))
    counts = torch.stack(truth.counts(np.zeros(300, dtype=int), (1,)))
    logits = (counts[..., 0] / counts[..., -1]).log() - gene.values["bias_eta"][0]
    expected = 0.64 * (0.7 * covariance.dense() + 0.3 * torch.eye(36))
    np.testing.assert_allclose(torch.cov(logits.T), expected, atol=0.25)
    assert abs(float(logits.mean())) < 0.12
    shifted = torch.stack(
        Truth([gene], [totals], None, Multinomial(), truth.space, shift=torch.ones(36).double()).counts(
            np.zeros(300, dtype=int), (1,)
        )
    )
    moved = (shifted[..., 0] / shifted[..., -1]).log() - gene.values["bias_eta"][0] - logits
    assert abs(float(moved.mean()) - 1.0) < 0.02  # the same draws but for the effect


@pytest.mark.slow
def test_fitted_nuisance_is_as_it_was_fitted():
    adata = tissue_of((2,), seed=1, covariates=("smooth", "iid"), beta=np.array([[[1.5, 0, 0], [0, 0, 0]]]))
    model = fitted(adata, design=("smooth", "iid"))
    check = model.check_calibration("du", n_genes=2, truth="fitted", **SOON)
    assert list(dict.fromkeys(check.table["covariate"])) == ["smooth", "iid"] and (check.table["rate"] == "size").all()
    null = model.check_calibration("du", n_genes=2, truth="null", **SOON).pvalues
    assert not np.allclose(check.pvalues["statistic"], null["statistic"])
    space = model.check_calibration("sv", n_genes=10, truth="fitted", **SOON)
    without = model.check_calibration("sv", n_genes=10, truth="null", **SOON)
    assert not np.allclose(space.pvalues["statistic"], without.pvalues["statistic"])


@pytest.mark.parametrize("model_type", ["glm", "glmm-null"])
def test_models_without_space(model_type):
    adata = tissue_of((2, 3), seed=1, covariates=("smooth",))
    model = fitted(adata, model_type, design=("smooth",), with_design=True)
    check = model.check_calibration(n_genes=4, method=("score", "wald"), **SOON)
    assert set(check.table["test"]) == {"DU score", "DU wald"}
    with pytest.raises(InvalidArgumentError, match=r"has no space"):
        model.check_calibration("sv", n_genes=5, **SOON)
    with pytest.raises(InvalidArgumentError, match=r"Domains\(sd"):
        model.check_calibration(n_genes=5, truth="domains", **SOON)
    with pytest.raises(InvalidArgumentError, match="spatial_key"):
        model.check_calibration(n_genes=5, truth=Domains(sd=1.0), **SOON)
    bent = model.check_calibration(n_genes=30, truth=Domains(3, sd=3.0, spatial_key="spatial"), **SOON)
    assert bent.table["share"].iloc[0] > 0.12  # neither knows of domains


class Skewed(Multinomial):
    """A likelihood of a person's own, whose draws come from the global generator."""

    def log_prob(self, counts, eta):
        return Multinomial().log_prob(counts, 0.5 * eta)

    def mean(self, eta):
        return Multinomial().mean(0.5 * eta)

    def sample(self, totals, eta, *, generator=None):
        table = torch.zeros(*totals.shape, eta.shape[-1] + 1, dtype=torch.float64)
        for place in np.ndindex(*totals.shape):
            n = int(totals[place])
            if n:
                drawn = torch.multinomial(self.mean(eta)[place], n, replacement=True)
                table[place] = torch.bincount(drawn, minlength=table.shape[-1]).double()
        return table


class Mute(Likelihood):
    """One that cannot sample."""

    def log_prob(self, counts, eta):
        return Multinomial().log_prob(counts, eta)


def test_a_likelihood_of_ones_own(tmp_path):
    adata = tissue_of((2, 3), seed=1)
    model = fitted(adata, design=None, likelihood=Skewed())
    ask = {"n_genes": 4, "seed": 3, **SOON}
    once, again = (model.check_calibration(**ask).pvalues for _ in range(2))
    pd.testing.assert_frame_equal(once, again)
    mute = fitted(adata, design=None, likelihood=Mute())
    with pytest.raises(NotStatedError, match="sample"):
        mute.check_calibration(n_genes=5, **SOON)


class Far(SpatialCovariance):
    """A covariance without a graph."""

    def dense(self):
        x = torch.arange(36.0, dtype=torch.float64)
        return torch.exp(-(x[:, None] - x).abs() / 5) * 0.9 + 0.1 * torch.eye(36, dtype=torch.float64)


@pytest.mark.slow
def test_hyperparameters_priors_groups_and_covariances_of_ones_own():
    adata = tissue_of((3,), seed=1, covariates=("smooth",))
    wide = fitted(adata, design=("smooth",), likelihood=DirichletMultinomial(), priors="weak", share_variance=False)
    assert len(wide.check_calibration(n_genes=2, **SOON).sentences) == 2
    sections = fitted(adata, design=("smooth",), setup={"section_key": "half"})
    assert len(sections.check_calibration(n_genes=2, truth="domains", **SOON).sentences) == 2
    own = fitted(adata, design=("smooth",), setup={"covariance": Far()})
    own.check_calibration("sv", n_genes=8, effect=1.0, **SOON)
    with pytest.raises(InvalidArgumentError, match="no graph"):
        own.check_calibration("du", n_genes=2, truth="domains", **SOON)
    own.check_calibration("du", n_genes=2, truth=Domains(3, spatial_key="spatial"), **SOON)


def test_genes_without_pvalues_are_counted_with_their_reasons():
    adata = tissue_of((3, 2), seed=1)
    counts = adata.layers["counts"].toarray()
    rare = adata.var["gene_symbol"].to_numpy() == "gene_2"
    counts[:, rare] = 0
    counts[0, np.flatnonzero(rare)[0]], counts[1, np.flatnonzero(rare)[1]] = 3, 1
    adata.layers["counts"] = counts
    model = fitted(adata, design=None, setup={"min_counts": 0})
    check = model.check_calibration("sv", n_genes=60, **SOON)
    mine = check.pvalues[check.pvalues["source"] == "gene_2"]
    lost = mine["pvalue"].isna()
    assert lost.any() and (mine.loc[lost, "reason"] != "").all() and (mine.loc[~lost, "reason"] == "").all()
    assert check.reasons["genes"].sum() == check.table["missing"].iloc[0] == lost.sum()
    assert "without p-value" in str(check)


def test_isoforms_that_were_never_drawn_are_left_out():
    counts = torch.tensor([[1.0, 0, 2], [3, 0, 0]])
    assert observed_isoforms(counts, Multinomial()).tolist() == [[1, 2], [3, 0]]
    alone = torch.tensor([[1.0, 0], [3, 0]])
    assert observed_isoforms(alone, Multinomial()) is alone


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"test": "space"}, "test: expected one of"),
        ({"n_genes": 0}, "n_genes"),
        ({"n_genes": 2.5}, "n_genes"),
        ({"truth": "model"}, "truth: expected one of"),
        ({"truth": 3}, "truth: expected one of"),
        ({"truth": Domains(100)}, "100 domains of 36 spots"),
        ({"truth": Domains(spatial_key="image")}, "spatial_key"),
        ({"method": "llr"}, "method, for test='du'"),
        ({"test": "sv", "method": "wald"}, "method: expected one of"),
        ({"method": []}, "method"),
        ({"effect": 1.0}, "give test='sv' or test='du'"),
        ({"test": "sv", "effect": -1.0}, "positive"),
        ({"test": "du", "effect": 0}, "effect"),
        ({"test": "du", "effect": float("nan")}, "effect"),
        ({"confidence": 1.0}, "confidence"),
        ({"seed": -1}, "seed"),
        ({"n_jobs": 0}, "n_jobs"),
        ({"print_progress": 3}, "print_progress"),
        ({"return_results": False}, "return_results"),
        ({"test": "du", "variance": "sandwich"}, "variance"),
        ({"test": "du", "contrasts": {"a": {"smooth": 1}}, "method": "wald", "effect": 1.0}, "contrasts"),
        ({"test": "du", "contrasts": {"a": {"typo": 1}}, "method": "wald"}, "typo"),
        ({"test": "sv", "typo": 1}, "typo"),
        ({"test": "sv", "n_bootstrap": 5}, "n_bootstrap"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(model, monkeypatch, arguments, words):
    def never(*_):
        raise AssertionError("drawn")

    monkeypatch.setattr(Truth, "counts", never)
    with pytest.raises((InvalidArgumentError, TypeError), match=words):
        model.check_calibration(**{"n_genes": 5, **SOON, **arguments})


def test_domains_check_their_arguments():
    for arguments in ({"number": 1}, {"sd": 0.0}, {"sd": -1.0}, {"spatial_key": 3}):
        with pytest.raises(InvalidArgumentError, match="Domains"):
            Domains(**arguments)


def test_models_that_are_not_ready_are_refused_in_words():
    with pytest.raises(NotReadyError, match="setup_data"):
        SplisosmGLMM().check_calibration()
    model = SplisosmGLMM("glm")
    model.setup_data(tissue_of(seed=1))
    with pytest.raises(NotReadyError, match="fit"):
        model.check_calibration()
    model.fit(**SOON)
    with pytest.raises(InvalidArgumentError, match="neither space nor covariates"):
        model.check_calibration()


def test_figure_shows_the_pvalues_of_the_null_genes(fixed):
    matplotlib.use("Agg")
    check = fixed.check_calibration("du", n_genes=20, effect=1.0, **SOON)
    ax = check.plot()
    curves = [line for line in ax.lines if line.get_marker() != "None"]
    assert len(curves) == fixed.n_factors and all(line.get_xdata().size == 20 for line in curves)
    assert len(check.plot(covariates="smooth", band="pointwise").get_legend().get_texts()) == 2  # points and band
    with pytest.raises(InvalidArgumentError, match="covariates"):
        check.plot(covariates="typo")
    with pytest.raises(InvalidArgumentError, match="band"):
        check.plot(band="wide")
    plt.close("all")
