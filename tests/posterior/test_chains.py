"""Draws in chains: what is divided, refused, thinned, shown and seeded, in every family."""

import logging
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from pyrosplice import ExpressionGLM, GaussianMixture, MultinomGLM
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.posterior import NutsOptions, leave_one_out
from pyrosplice.posterior._chains import ASKED, CHAINS, FEWEST, chains_of
from pyrosplice.posterior._progress import AFTER, bar, progress
from tests.posterior.test_posterior import data, mixed


@pytest.fixture(scope="module")
def usage():
    return mixed(*data())


@pytest.fixture(scope="module")
def expression():
    rng = np.random.default_rng(0)
    cells = pd.DataFrame({"group": ["a", "b"] * 40})
    return ExpressionGLM("~ group").fit(rng.poisson(4.0, (80, 3)), sample_description=cells)


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(6, 1, (40, 2))])


@pytest.fixture(scope="module")
def mixture(cells):
    return GaussianMixture(num_components=2).fit(cells)


INDEPENDENT = [
    ("usage", {}),
    ("usage", {"method": "importance"}),
    ("usage", {"hyper": "integrate"}),
    ("expression", {}),
]


@pytest.mark.parametrize(("family", "options"), INDEPENDENT, ids=str)
def test_every_draw_is_kept_and_in_order(family, options, request):
    model = request.getfixturevalue(family)
    one = model.posterior(num_samples=40, num_chains=1, seed=3, **options)
    four = model.posterior(num_samples=40, seed=3, **options)
    assert {child.sizes["chain"] for child in one.children.values() if "chain" in child.sizes} == {1}
    compared = 0
    for name, child in one.children.items():
        for variable, whole in child.data_vars.items():
            divided = four[name][variable]
            if "draw" not in whole.dims:
                xr.testing.assert_identical(whole, divided)
                continue
            assert divided.sizes["chain"] == CHAINS and divided.sizes["draw"] == 10
            together = divided.stack(all=("chain", "draw")).transpose("all", ...)
            np.testing.assert_array_equal(together.values, whole.transpose("chain", "draw", ...).values[0])
            compared += 1
    assert compared >= 3 and four.attrs == one.attrs


def test_what_is_made_of_draws_does_not_depend_on_their_division(usage):
    one, four = (usage.posterior(num_samples=400, seed=1, num_chains=number) for number in (1, 4))
    for name in ("mean", "std"):
        xr.testing.assert_allclose(
            getattr(one["posterior"].beta, name)(("chain", "draw")),
            getattr(four["posterior"].beta, name)(("chain", "draw")),
            rtol=1e-12,
        )
    quantiles = [tree["posterior"].beta.quantile([0.05, 0.95], ("chain", "draw")) for tree in (one, four)]
    xr.testing.assert_allclose(*quantiles, rtol=1e-12)
    # the effective number of draws, and with it the length of a tail that is smoothed, is a little less for four
    loo = [leave_one_out(tree) for tree in (one, four)]
    np.testing.assert_allclose(loo[0]["elpd"], loo[1]["elpd"], atol=0.05)


@pytest.mark.parametrize("n_draws", [1, 3, 4, 15, 16, 17, 18, 19, 21, 25, 30, 99, 1000, 1001, 10007])
def test_chains_are_equal_and_long_enough(n_draws, caplog):
    caplog.set_level(logging.INFO, "pyrosplice")
    number = chains_of(n_draws)
    assert 1 <= number <= CHAINS and n_draws % number == 0 and (number == 1 or n_draws // number >= FEWEST)
    better = [n for n in range(number + 1, CHAINS + 1) if n_draws % n == 0 and n_draws // n >= FEWEST]
    assert better == []
    assert bool(caplog.records) == (number != CHAINS and n_draws >= CHAINS * FEWEST)


@pytest.mark.parametrize("given", [0, -1, 2.5, "4", True, 7, 41])
def test_chains_that_cannot_be_are_refused(usage, given):
    with pytest.raises(InvalidArgumentError, match="num_chains"):
        usage.posterior(num_samples=40, num_chains=given)


def test_refusals_name_numbers_of_draws_that_go(usage):
    with pytest.raises(InvalidArgumentError, match="num_samples=39 or 42") as raised:
        usage.posterior(num_samples=40, num_chains=3)
    for number in map(int, re.findall(r"\d\d", str(raised.value).split("num_samples=")[1])):
        assert usage.posterior(num_samples=number, num_chains=3, groups=())["posterior"].sizes["chain"] == 3


@pytest.mark.parametrize(
    "options",
    [
        {"over_memory": "drop"},
        {"over_memory": None},
        {"quiet": "no"},
        {"seed": -1},
        {"seed": 1.5},
        {"num_samples": 0},
        {"method": "nuts", "num_samples": FEWEST - 1},
        {"nuts_options": NutsOptions()},
        {"method": "nuts", "nuts_options": NutsOptions(num_chains=2), "num_chains": 3},
        {"method": "nuts", "nuts_options": {"num_chains": 2}},
    ],
    ids=str,
)
def test_options_that_nothing_could_follow_are_refused(usage, options):
    with pytest.raises(InvalidArgumentError, match="|".join(options)):
        usage.posterior(**{"num_samples": 40, **options})


def memory_of(n_draws, model, **options):
    """Bytes that let so many draws through, and no more: from what a refusal says of them."""
    with pytest.raises(InvalidArgumentError, match="max_memory") as raised:
        model.posterior(num_samples=1000, max_memory=1000, **options)
    whole = float(re.search(r"need about (\S+) GB", str(raised.value))[1]) * 1e9
    return whole * (n_draws + 0.5) / 1000


@pytest.mark.parametrize("family", ["usage", "expression"])
def test_independent_draws_over_memory_are_fewer_and_say_so_where_they_were_asked_for(family, request):
    model = request.getfixturevalue(family)
    limit = memory_of(200, model)
    with pytest.warns(UserWarning, match="over_memory='thin': 1000 draws") as caught:
        tree = model.posterior(num_samples=1000, max_memory=limit, over_memory="thin")
    sizes = tree["posterior"].sizes
    assert sizes["chain"] == CHAINS and 150 <= sizes["chain"] * sizes["draw"] <= 200
    assert tree.attrs[ASKED] == 1000
    assert [one.filename for one in caught] == [__file__]
    # draws are exchangeable: the first ones are a posterior as well
    fewer = model.posterior(num_samples=sizes["chain"] * sizes["draw"])
    assert ASKED not in fewer.attrs
    for name in fewer["posterior"].data_vars:
        xr.testing.assert_identical(tree["posterior"][name], fewer["posterior"][name])


def test_sweeps_over_memory_are_one_of_every_few(mixture, cells):
    options = {"num_samples": 100, "warmup_steps": 5, "seed": 2, "num_chains": 2, "groups": ()}
    whole = mixture.posterior(cells, **options)["posterior"]
    with pytest.raises(InvalidArgumentError, match="max_memory") as raised:
        mixture.posterior(cells, max_memory=100, **options)
    limit = float(re.search(r"need about (\S+) GB", str(raised.value))[1]) * 1e9 * 0.4
    with pytest.warns(UserWarning, match="one of every 3") as caught:
        tree = mixture.posterior(cells, max_memory=limit, over_memory="thin", **options)
    assert tree.attrs[ASKED] == 100 and [one.filename for one in caught] == [__file__]
    thinned = tree["posterior"]
    assert thinned.sizes["draw"] == 33
    np.testing.assert_array_equal(thinned.means.values, whole.means.values[:, 2::3])


def test_a_draw_that_is_too_much_is_refused_even_so(usage):
    with pytest.raises(InvalidArgumentError, match="max_memory"):
        usage.posterior(num_samples=1000, max_memory=1, over_memory="thin")


def drawn(model, cells, **options):
    given = () if cells is None else (cells,)
    return model.posterior(*given, groups=(), **options)["posterior"]


@pytest.mark.parametrize("family", ["usage", "expression", "mixture"])
def test_seeds_repeat_and_differ(family, request, cells):
    model = request.getfixturevalue(family)
    where = cells if family == "mixture" else None
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, again, other = (drawn(model, where, num_samples=20, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    xr.testing.assert_identical(first, again)
    name = {"usage": "beta", "expression": "location", "mixture": "means"}[family]
    values = first[name].values
    assert (values != other[name].values).any()
    assert len(np.unique(values.reshape(len(values), -1)[:, -1])) == len(values), "chains differ"


def test_a_chain_of_sweeps_is_the_same_beside_any_others(mixture, cells):
    options = {"num_samples": 15, "warmup_steps": 3, "seed": 4}
    one, three = (drawn(mixture, cells, num_chains=number, **options) for number in (1, 3))
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(one[name].values[0], three[name].values[0], rtol=1e-9)
        assert not np.allclose(three[name].values[0], three[name].values[1])


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_chains_of_sweeps_begin_apart(cells, kind):
    """Before any warm-up: between chains the first means vary more than within their posterior."""
    mixture = GaussianMixture(num_components=2, covariance_type=kind).fit(cells)
    tree = drawn(mixture, cells, num_samples=200, num_chains=4, warmup_steps=50)
    assert float(tree.means.std(("chain", "draw")).min()) > 0
    first = drawn(mixture, cells, num_samples=4, num_chains=200, warmup_steps=0).means.isel(draw=0)
    assert first.std("chain").min() > 0.5 * float(tree.means.std(("chain", "draw")).min())


@pytest.mark.slow
def test_nuts_of_usage_and_mixtures_has_four_chains_that_begin_apart_and_agree(usage, mixture, cells):
    options = NutsOptions(warmup_steps=60, max_tree_depth=5)
    for tree in (
        usage.posterior(num_samples=60, method="nuts", genes=[0], groups=(), nuts_options=options),
        mixture.posterior(cells, num_samples=60, method="nuts", warmup_steps=60, groups=()),
    ):
        sites = tree["posterior"]
        assert sites.sizes["chain"] == CHAINS
        for name in ("beta", "means") & sites.data_vars.keys():
            values = sites[name].values
            spread = values.std((0, 1))
            assert (np.abs(values.mean(1) - values.mean((0, 1))) < 1.5 * spread).all()
            assert len({float(chain.flat[0]) for chain in values[:, 0]}) == CHAINS


@pytest.mark.parametrize("family", ["usage", "expression", "mixture"])
def test_rhat_and_effective_draws_are_those_of_arviz(family, request, cells):
    stats = pytest.importorskip("arviz_stats")
    model = request.getfixturevalue(family)
    tree = model.posterior(*([cells] if family == "mixture" else []), num_samples=100 if family == "mixture" else 400)
    sites = {"usage": ["beta"], "expression": ["location", "scale"], "mixture": ["weights", "means"]}[family]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = stats.summary(tree, var_names=sites, round_to="none")
    assert (table["r_hat"] < 1.06).all() and (table["r_hat"] > 0.99).all()
    assert (table["ess_bulk"] > 100).all()


def test_bars_are_shown_from_some_seconds_on_and_never_where_quiet(capsys):
    def shown(**options):
        with progress(**options), bar(3, "draws", "gene") as counted:
            for _ in range(3):
                counted.update()
        return capsys.readouterr().err

    assert AFTER > 0 and shown(quiet=False) == ""
    assert "draws" in shown(quiet=False, after=0.0) and "3/3" in shown(quiet=False, after=0.0)
    assert shown(quiet=True, after=0.0) == ""


def test_nothing_is_shown_of_what_is_over_in_a_moment(usage, expression, mixture, cells, capsys):
    for model in (usage, expression):
        model.posterior(num_samples=8, groups=())
    mixture.posterior(cells, num_samples=4, warmup_steps=0, groups=())
    assert capsys.readouterr().err == ""
    mixture.posterior(cells, num_samples=4, warmup_steps=0, groups=(), progress=True)
    assert "Gibbs, 4 chains" in capsys.readouterr().err
    mixture.posterior(cells, num_samples=4, warmup_steps=0, groups=(), quiet=True)
    assert capsys.readouterr().err == ""


def test_trees_are_the_same_after_a_file(tmp_path, usage):
    """Also those of one chain, as all were before there were four."""
    for number in (1, 4):
        tree = usage.posterior(num_samples=40, num_chains=number)
        path = tmp_path / f"{number}.zarr"
        tree.to_zarr(path, consolidated=False)
        back = xr.open_datatree(path, engine="zarr", consolidated=False).load()
        np.testing.assert_allclose(leave_one_out(back)["elpd"], leave_one_out(tree)["elpd"])


def test_a_fit_without_covariates_has_chains_too():
    counts = torch.randint(0, 10, (2, 50, 3), generator=torch.Generator().manual_seed(0))
    model = MultinomGLM()
    model.setup_data(counts)
    model.fit(quiet=True)
    tree = model.posterior(num_samples=16)
    assert tree["posterior"].sizes["chain"] == CHAINS and tree["posterior"].sizes["draw"] == FEWEST
