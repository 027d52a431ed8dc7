"""What people import: the public rooms and their names, and nothing else without an underscore."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import pyrosplice
from tests.paths import pages_of_text

ROOT = Path(__file__).resolve().parents[1]

ROOMS = {
    "": {
        "AnnData_TripletDataset",
        "ExpressionGLM",
        "GaussianMixture",
        "GaussianMixtureModel",
        "GaussianMixtureModelConfig",
        "MultinomGLM",
        "MultinomGLMM",
        "SplisosmGLMM",
        "TripletDataset",
        "__version__",
        "evaluate_holdout_nll",
        "fit_gmm",
        "log_likelihood_scorer",
        "mixture_table",
        "patient_distances",
        "selection_table",
        "spatially_variable_genes",
        "summarize_holdout_nll",
        "validate_gmm",
    },
    "data": {
        "Design",
        "IsoformData",
        "available_sets",
        "build_design",
        "feature_summary",
        "pseudobulk",
        "from_junctions",
        "from_spatialdata",
        "from_visium",
        "load_allele_counts",
        "load_breast_sections",
        "load_bulb_families",
        "load_glioblastoma",
        "load_lung_junctions",
        "read_isoforms",
        "simulate_counts",
        "simulate_expression",
        "simulate_isoforms",
        "simulate_totals",
        "spatial_patterns",
    },
    "effects": {"Effect", "Field", "Groups", "Independent", "SoftmaxBasis"},
    "glmm": {
        "CountGLMM",
        "EffectsProblem",
        "EigenCovariance",
        "MultinomialGLM",
        "MultinomialGLMM",
        "SpatialEffect",
        "SpotCounts",
        "log_density",
    },
    "guides": {
        "AutoMarginalLaplace",
        "AutoNewtonMAP",
        "AutoUnitNormal",
        "AutoUnits",
        "DiagonalPrecision",
        "FitOptions",
        "MatrixPrecision",
        "init_to_center",
        "precision",
    },
    "likelihoods": {
        "BetaBinomial",
        "Binomial",
        "CellCounts",
        "DirichletMultinomial",
        "Likelihood",
        "Multinomial",
        "NegativeBinomial",
        "Normal",
        "Poisson",
        "draw_multinomial",
    },
    "plotting": {
        "TissueImage",
        "convergence_traces",
        "criterion_curve",
        "dispersion",
        "effect_forest",
        "effect_table",
        "estimate_vs_truth",
        "heatmap",
        "ma",
        "mixture_components",
        "patient_distance_map",
        "posterior_usage_table",
        "predictive_intervals",
        "pvalue_histogram",
        "qq",
        "rank_ecdf",
        "rank_histogram",
        "rootogram",
        "tissue_image",
        "usage_map",
        "usage_table",
        "variance_grid",
        "volcano",
    },
    "posterior": {
        "NutsOptions",
        "compare_posteriors",
        "convergence_table",
        "grid_table",
        "laplace_check",
        "laplace_shifts",
        "leave_one_out",
        "one_gene",
        "predictive_check",
        "prior_sensitivity",
    },
    "priors": {"InverseWishart", "ScaledNormal", "SymmetricNormal", "pc_sigma", "pc_theta", "weak_priors"},
    "spatial": {
        "CarCovariance",
        "GraphMatern",
        "IdentityCovariance",
        "SpatialCovariance",
        "adjacency_graph",
        "component_labels",
        "get_cov_sp",
        "knn_graph",
        "section_graph",
        "warn_if_disconnected",
        "within_sections",
    },
    "testing": {"Domains", "calibrate", "check_covariance", "check_effect", "check_likelihood"},
}
MODULES = {
    "api",
    "demo",
    "errors",
    "reasons",
}  # public files without a list: what a script of diffxpy's takes, and names
FILES = {"spatial": {"car"}}  # scripts import the covariance from its own file
PAGES = (
    *pages_of_text(),
    *(f"tutorials/{path.name}" for path in sorted((ROOT / "tutorials").glob("*.ipynb"))),
)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_has_these_names_and_no_others(room: str) -> None:
    module = importlib.import_module(f"pyrosplice.{room}".rstrip("."))
    assert set(module.__all__) == ROOMS[room]
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name).__doc__ or name == "__version__", name


def test_whatever_else_there_is_says_by_its_name_that_it_is_private() -> None:
    found = {module.name for module in pkgutil.iter_modules(pyrosplice.__path__)}
    assert {name for name in found if not name.startswith("_")} == {room for room in ROOMS if room} | MODULES
    for room in filter(None, ROOMS):
        inside = importlib.import_module(f"pyrosplice.{room}").__path__
        public = {module.name for module in pkgutil.iter_modules(inside) if not module.name.startswith("_")}
        assert public == FILES.get(room, set()), room


@pytest.mark.parametrize("page", PAGES)
def test_pages_for_people_import_public_names_only(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    imports = re.findall(r"(?:from|import) (pyrosplice[\w.]*)", text)
    assert not [name for name in imports if "._" in name]
