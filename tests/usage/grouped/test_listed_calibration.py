"""Checks of calibration beside lists of effects: genes are drawn with their effects, and tests hold."""

import numpy as np
import pytest
import torch

from pyrosplice._usage.analysis.null_genes import Space, Truth
from pyrosplice.effects import Field, Groups
from pyrosplice.errors import InvalidArgumentError, RefusedModelError
from tests.usage.grouped.test_listed_effects import listed, tissue
from tests.usage.grouped.tissues import sections


def test_drawn_genes_vary_as_the_fit_says():
    """At many counts a spot the log odds of spots have the fitted variance of groups, spots and shift."""
    adata = sections(2, n_sections=40, side=3, n_genes=1, n_isoforms=2, sd=0.7, depth=400.0)
    model = listed(adata, Groups("section"), "glmm-null")
    analysis = model.analysis
    spec, counts = analysis.grouped_spec(with_design=False), analysis.prepared.counts
    shift = torch.linspace(-1, 1, adata.n_obs, dtype=torch.float64)
    about = [counts[0].sum(-1)], None, analysis.options.likelihood, Space(None)
    truth = Truth(analysis.fit.genes, *about, shift=shift, listed=(spec, counts))
    drawn = torch.stack(truth.counts(np.zeros(30, np.intp), (0, 0)))
    odds = ((drawn[..., 0] + 0.5) / (drawn[..., 1] + 0.5)).log() - shift
    torch.testing.assert_close(drawn.sum(-1), counts[0].sum(-1).expand(30, -1))
    by_section = odds.reshape(30, 40, 9)
    sds = model.variance_components().set_index("effect")["estimate"]
    assert abs(float(by_section.mean(2).var(1).mean().sqrt()) / sds["1 | section"] - 1) < 0.1
    assert abs(float(by_section.var(2).mean().sqrt()) / sds["spot"] - 1) < 0.15
    assert abs(float(odds.mean()) - float(model.get_gene_model("g0").bias_eta)) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*varies within")
def test_tests_of_conditions_hold_on_genes_with_groups():
    adata = sections(1, n_sections=8, side=3, n_genes=6, sd=0.5)
    model = listed(adata, Groups("section"), "glm", design="~ condition")
    check = model.check_calibration("du", n_genes=300, method=["wald", "lrt"], print_progress=False)
    table = check.table[check.table["level"] == 0.05]
    assert check.holds and (table["genes"] == 300).all() and table["share"].between(0.01, 0.09).all()
    power = model.check_calibration("du", n_genes=100, method="wald", effect=3.0, print_progress=False).table
    share = power[power["level"] == 0.05].set_index("rate")["share"]
    assert share["power"] > 0.8 > share["size"]


@pytest.mark.slow
def test_the_score_test_of_space_holds_on_genes_with_groups():
    adata = sections(1, n_sections=6, side=4, n_genes=6, sd=0.5)
    model = listed(adata, [Groups("section"), Field(k_neighbors=4)], design="~ age")
    for truth in ("null", "fitted"):
        check = model.check_calibration("sv", n_genes=300, truth=truth, print_progress=False)
        assert check.holds, str(check)


def test_what_is_not_known_of_lists_is_refused():
    model = listed(tissue(9, n_genes=1), [Field(k_neighbors=3), Groups("section")], design="~ age")
    for options, what in (
        ({"truth": "domains"}, r"^truth='domains': "),
        ({"test": "sv", "effect": 1.0}, r"^effect of test='sv': "),
        ({"test": "sv", "method": "llr"}, r"^(from_null|method='llr'): "),
    ):
        with pytest.raises(RefusedModelError, match=what):
            model.check_calibration(n_genes=2, print_progress=False, **options)
    with pytest.raises(InvalidArgumentError, match=r"^variance: with random effects"):
        model.check_calibration("du", n_genes=2, method="wald", variance="robust", print_progress=False)
