"""Groups of a model of counts: every way of saying them is one model, and what says nothing is refused."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from pyrosplice import MultinomGLMM, SplisosmGLMM
from pyrosplice.effects import Effect, Field, Groups, Independent
from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError
from tests.usage.grouped.tissues import NEWTON, QUIET, sections


def counts_and_table(seed=0):
    adata = sections(seed, n_sections=4, side=3, n_genes=2)
    counts = adata.layers["counts"].reshape(adata.n_obs, 2, 3).transpose(1, 0, 2)
    return counts, adata.obs, adata


def taken(groups, table=None, counts=None, **given):
    model = MultinomGLMM(**NEWTON)
    model.setup_data(counts_and_table()[0] if counts is None else counts, groups=groups, table=table, **given)
    return model


COUNTS, OBS, ADATA = counts_and_table()
LABELS = {
    "array": OBS["section"].to_numpy(),
    "list": OBS["section"].tolist(),
    "series": OBS["section"].rename(None),
    "categorical": pd.Categorical(OBS["section"]),
    "numbers": OBS["section"].str[1:].astype(int).to_numpy(),
    "tensor": torch.tensor(OBS["section"].str[1:].astype(int).to_numpy()),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_of_any_type_are_an_intercept_of_each(labels):
    model, expected = taken(labels), taken(Groups("section"), OBS)
    for one in (model, expected):
        one.fit(quiet=True)
    assert "(1 | group)" in repr(model) and "(1 | section)" in repr(expected)
    torch.testing.assert_close(model(), expected(), rtol=0, atol=1e-9)
    torch.testing.assert_close(model.linear_predictor(), expected.linear_predictor(), rtol=0, atol=1e-6)


NESTED = [
    {"donor": OBS["donor"], "donor_section": OBS["donor"] + OBS["section"]},
    ["(1 | donor)", Groups(("donor", "section"))],
    "(1 | donor/section)",
    "~ (1 | donor) + (1 | donor:section)",
    [Groups("donor"), Groups(("donor", "section"))],
]


@pytest.mark.parametrize("groups", NESTED, ids=["labels", "mixed", "nested", "formula", "effects"])
def test_several_groups_are_one_model_however_they_are_said(groups):
    model = taken(groups, None if isinstance(groups, dict) else OBS)
    model.fit(quiet=True)
    found = SplisosmGLMM("glmm-null", **NEWTON)
    found.setup_data(ADATA, design_mtx="~ (1 | donor/section)", min_counts=0)
    found.fit(batch_size=2, **QUIET)
    expected = [found.get_gene_model(name)()[0] for name in found.gene_names]
    torch.testing.assert_close(model(), torch.stack(expected), rtol=0, atol=1e-8)
    assert len(model.random_effects(model.variance_components()["effect"].iloc[0])) == 2 * 2 * 2


def test_tables_are_paired_with_counts_by_the_names_of_spots():
    rng = np.random.default_rng(0)
    order = rng.permutation(len(OBS))
    tables = [pd.DataFrame(COUNTS[g], index=OBS.index) for g in range(2)]
    one = taken(Groups("section"), OBS.iloc[order], tables)
    two = taken(OBS["section"].iloc[order], None, tables)
    straight = taken(Groups("section"), OBS, tables)
    straight.fit(quiet=True)
    for model in (one, two):
        model.fit(quiet=True)
        torch.testing.assert_close(model(), straight())


class Batches(Effect):
    """Alternate spots."""

    def levels(self, table):
        return np.arange(len(table)) % 3


def test_an_effect_of_ones_own_and_copies():
    model = taken([Batches(), "(1 + age | donor)"], OBS)
    model.fit(quiet=True)
    for other in (copy.deepcopy(model), model.clone(), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(), model())
        pd.testing.assert_frame_equal(other.variance_components(), model.variance_components())
    assert set(model.variance_components()["effect"]) == {"Batches", "1 + age | donor", "spot"}
    assert set(model.state_dict()) == {"beta", "bias_eta", "nu", "sigma", "theta_logit"}
    model.setup_data(COUNTS, np.eye(len(OBS)))
    with pytest.raises(NotReadyError, match="groups=labels"):
        model.random_effects()


REFUSED = {
    "a column": ("section", None, "^groups: expected labels of the spots.*found 'section'"),
    "columns": (["section", "donor"], OBS, "^groups: expected .*for which nothing is read from table"),
    "too few": (["a", "b"], None, "^groups: expected 36 labels, one a spot, found 2"),
    "none": ([], None, "^groups: expected"),
    "no names": ({}, None, "^groups: expected .*found none"),
    "a class": (Groups, OBS, r"^groups: expected .*call it: Groups\(\)"),
    "a field": ([Field()], OBS, r"^groups: expected .*found Field\(\)"),
    "noise": (Independent(), OBS, "^groups: expected .*found Independent"),
    "a number": (3, None, "^groups: expected 36 labels"),
    "missing": ([None, *["a"] * 20, *["b"] * 15], None, "^groups: .*missing"),
    "one group": (["a"] * 36, None, "two groups at least"),
    "every spot": (np.arange(36), None, r"Independent\(\)"),
    "no table": (Groups("section"), None, "^table: .*give the table"),
    "short table": (Groups("section"), OBS[:5], "^table: expected 36 rows"),
    "no frame": (Groups("section"), OBS.to_numpy(), "^table: expected a DataFrame"),
    "no column": (Groups("section"), OBS[["age"]], "section"),
    "fixed terms": ("age + (1 | section)", OBS, "^groups: expected random terms"),
    "twice": (["(1 | section)", Groups("section")], OBS, "cannot be told apart"),
    "a number for a name": ({"section": OBS["section"], 3: OBS["donor"]}, None, "^groups: expected names"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_says_no_groups_is_refused_and_nothing_is_lost(name):
    groups, table, message = REFUSED[name]
    model = taken(OBS["section"])
    with pytest.raises(InvalidArgumentError, match=message):
        model.setup_data(COUNTS, groups=groups, table=table)
    model.fit(quiet=True)
    assert "(1 | section)" in repr(model)


def test_options_and_arguments_that_groups_do_not_have_are_refused():
    labels = OBS["section"]
    for name, options in {
        "fitting_method": {"var_fix_sigma": False},
        "var_fix_sigma": {"fitting_method": "marginal_newton"},
        "share_variance": {**NEWTON, "share_variance": False},
        "priors": {**NEWTON, "priors": "weak"},
        "fitting_configs": {**NEWTON, "fitting_configs": {"tol": 1e-9}},
        "model": {**NEWTON, "model": lambda counts: None},
    }.items():
        with pytest.raises(InvalidArgumentError, match=rf"^{name}: with random effects of groups expected .*Options"):
            MultinomGLMM(**options).setup_data(COUNTS, groups=labels)
    with pytest.raises(InvalidArgumentError, match=r"^table: .*leave it out"):
        MultinomGLMM(**NEWTON).setup_data(COUNTS, np.eye(36), table=OBS)
    with pytest.raises(InvalidArgumentError, match=r"^corr_sp: expected the covariance of n_spots = 36"):
        taken(labels, corr_sp=np.eye(5))

    class Other(MultinomGLMM):
        def forward(self):
            return super().forward() + 1

    with pytest.raises(InvalidArgumentError, match=r"^forward: Other overrides it"):
        Other(**NEWTON).setup_data(COUNTS, groups=labels)
    model = taken(labels)
    with pytest.raises(NotReadyError, match="call fit"):
        model()
    model.fit(quiet=True)
    with pytest.raises(InvalidArgumentError, match="store_param_history"):
        model.fit(store_param_history=True)
    for call in (model.observed_information, lambda: model.update_params_from_dict({"beta": 0})):
        with pytest.raises(RefusedModelError, match="without random effects of groups"):
            call()
