"""Genes fitted together, and what an analysis says of a joint fit."""

import numpy as np
import pytest
import torch

from pyrosplice import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError


@pytest.fixture(scope="module")
def tissue():
    """Genes of two and of three isoforms, in turn."""
    adata = simulate_isoforms(n_spots=64, n_genes=6, sigma=0.7, theta=0.5, seed=0)
    lost = adata.var["gene_symbol"].isin(["gene_2", "gene_4"]) & adata.var_names.str.endswith("iso_3")
    return adata[:, ~lost].copy()


def fitted(adata, batch_size, *, group=False, **options):
    model = SplisosmGLMM(**options)
    model.setup_data(adata, layer="counts", group_iso_by="gene_symbol", group_gene_by_n_iso=group)
    model.fit(batch_size=batch_size, print_progress=False)
    return model


def numbers(model):
    return [torch.cat([m.beta.flatten(), m.bias_eta.flatten(), m.sigma.flatten()]) for m in model.get_fitted_models()]


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("method", ["joint_newton", "marginal_newton"])
def test_auto_gives_every_gene_what_it_has_alone(tissue, method, group):
    alone, together = (fitted(tissue, size, group=group, fitting_method=method) for size in (1, "auto"))
    assert list(alone.gene_names) == list(together.gene_names)
    for one, other in zip(numbers(alone), numbers(together), strict=True):
        np.testing.assert_allclose(other.detach(), one.detach(), atol=1e-3)


@pytest.mark.parametrize("wrong", ["all", 0, -1, 1.5, True, None, np.array(["auto"])])
def test_other_batch_sizes_are_refused(tissue, wrong):
    model = SplisosmGLMM()
    model.setup_data(tissue, layer="counts", group_iso_by="gene_symbol")
    with pytest.raises(InvalidArgumentError, match=r"batch_size.*'auto'"):
        model.fit(batch_size=wrong, print_progress=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, True),
        ({"fitting_method": "joint_newton"}, True),
        ({"fitting_method": "marginal_newton"}, False),
        ({"model_type": "glm"}, False),
        ({"model_type": "glmm-null"}, False),
    ],
)
def test_theta_of_a_joint_fit_is_said_to_be_no_estimate(options, said):
    model = SplisosmGLMM(**options)
    assert ("not an estimate after a joint fit" in repr(model)) == said
    assert ("not an estimate after a joint fit" in model._repr_html_()) == said
