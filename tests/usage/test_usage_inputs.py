"""What SplisosmGLMM and the models of one batch take: by name, from every container, or refused before any work."""

import inspect

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrosplice import MultinomGLM, MultinomGLMM, SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial.car import CarCovariance
from tests.usage.conftest import tissue_of

QUIET = {"print_progress": False}
N = 36
RNG = np.random.default_rng(0)
LABELS = RNG.choice(list("abc"), N)


def set_up(adata, model_type="glm", **setup):
    model = SplisosmGLMM(model_type)
    model.setup_data(adata, **setup)
    return model


@pytest.mark.parametrize("design", ["region", "~ region", ["region"], "table"])
@pytest.mark.parametrize("model_type", ["glm", "glmm-full"])
def test_dropping_spots_without_a_label_is_leaving_them_out_beforehand(tissue, design, model_type):
    tissue.obs["region"] = np.where(np.arange(N) < 6, None, LABELS)
    asked = tissue.obs[["region"]].iloc[::-1] if design == "table" else design
    with pytest.raises(InvalidArgumentError, match=r"design_mtx: column 'region': .*6 of 36 missing"):
        set_up(tissue, model_type, design_mtx=asked)
    with pytest.warns(UserWarning, match=r"missing='drop': 6 of 36 spots") as said:
        model = set_up(tissue, model_type, design_mtx=asked, missing="drop")
    assert sum("drop" in str(warning.message) for warning in said) == 1
    expected = set_up(tissue[6:].copy(), model_type, design_mtx="region" if design == "table" else design)
    assert list(model.filtered_adata.obs_names) == list(tissue.obs_names[6:])
    assert torch.equal(model.design_mtx, expected.design_mtx)
    assert model.covariate_names == expected.covariate_names
    for a, b in zip(model._prepared.counts, expected._prepared.counts, strict=True):
        assert torch.equal(a, b)
    if model_type == "glmm-full":
        assert (model.sp_kernel.precision != expected.sp_kernel.precision).nnz == 0
    else:
        model.fit(**QUIET, with_design_mtx=True)
        assert model.get_fitted_ratios_anndata().n_obs == 30


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, " "])
@pytest.mark.parametrize("model_type", ["glm", "glmm-null", "glmm-full"])
def test_spots_without_a_section_are_refused_by_every_model_or_dropped(tissue, missing, model_type):
    tissue.obs["section"] = pd.Series([missing, *["s"] * 35], index=tissue.obs_names, dtype=object)
    with pytest.raises(InvalidArgumentError, match=r"section_key: adata\.obs\['section'\]: .*1 of 36 missing"):
        set_up(tissue, model_type, section_key="section")
    with pytest.warns(UserWarning, match="1 of 36 spots"):
        assert set_up(tissue, model_type, section_key="section", missing="drop").n_spots == 35


def test_dropping_every_spot_is_refused(tissue):
    tissue.obs["region"] = None
    with pytest.raises(InvalidArgumentError, match="missing='drop': none of 36 spots"):
        set_up(tissue, design_mtx="region", missing="drop")


def test_nothing_missing_is_nothing_said(tissue):
    assert set_up(tissue, design_mtx=["iid", "half"], missing="drop").n_spots == N


def test_a_section_of_few_spots_goes_with_min_component_size_and_its_level_with_it(tissue):
    tissue.obs["section"] = ["t"] * 4 + ["s"] * 32
    with pytest.raises(InvalidArgumentError, match="section 't' has 4 spots"):
        set_up(tissue, "glmm-full", section_key="section", design_mtx="half")
    tissue.obs["kind"] = np.where(np.arange(N) < 4, "only there", LABELS)
    for design in ("kind", "~ kind"):
        with pytest.warns(UserWarning, match=r"min_component_size=5: 4 of 36"):
            model = set_up(tissue, "glmm-full", section_key="section", design_mtx=design, min_component_size=5)
        assert not any("only" in name for name in model.covariate_names)
        assert (model.n_spots, len(model.design_mtx)) == (32, 32)


COORDINATES = {
    "frame": lambda xy, names: pd.DataFrame(xy, index=names, columns=["x", "y"]),
    "frame without column names": lambda xy, names: pd.DataFrame(xy, index=names),
    "nullable": lambda xy, names: pd.DataFrame(xy, index=names, columns=["x", "y"]).astype("Int64"),
    "CSR": lambda xy, names: sp.csr_matrix(xy),
    "CSC": lambda xy, names: sp.csc_matrix(xy),
    "objects": lambda xy, names: xy.astype(object),
    "integers": lambda xy, names: xy.astype(np.int16),
    "single": lambda xy, names: xy.astype(np.float32),
    "flat third": lambda xy, names: np.column_stack([xy, np.zeros(len(xy))]),
}


@pytest.mark.parametrize("kind", COORDINATES)
def test_coordinates_of_every_container_are_the_same_graph(tissue, kind, tmp_path):
    expected = set_up(tissue, "glmm-full").sp_kernel.precision
    tissue.obsm["spatial"] = COORDINATES[kind](tissue.obsm["spatial"], tissue.obs_names)
    model = set_up(tissue, "glmm-full")
    assert (model.sp_kernel.precision != expected).nnz == 0
    model.save(tmp_path / "model")
    assert type(SplisosmGLMM.load(tmp_path / "model").filtered_adata.obsm["spatial"]) is type(tissue.obsm["spatial"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda xy, names: pd.DataFrame(xy, index=names).assign(section="s1"), "column 'section': expected numbers"),
        (lambda xy, names: pd.DataFrame(xy, index=names).assign(t=pd.Categorical(LABELS)), "column 't'.*category"),
        (lambda xy, names: xy.astype(str), "expected numbers"),
        (lambda xy, names: xy + 0j, "complex128"),
        (lambda xy, names: np.where(xy == 2, np.nan, xy), "finite coordinates"),
        (lambda xy, names: np.where(xy == 2, -np.inf, xy), "finite coordinates"),
        (lambda xy, names: np.ones((N, 2, 2)), "expected a matrix"),
        (lambda xy, names: np.ones((N, 0)), "expected a matrix"),
    ],
)
def test_coordinates_that_are_none_are_refused(tissue, spoil, message):
    tissue.obsm["spatial"] = spoil(tissue.obsm["spatial"], tissue.obs_names)
    with pytest.raises(InvalidArgumentError, match=rf"^adata\.obsm\['spatial'\]: .*{message}"):
        set_up(tissue, "glmm-full")
    assert set_up(tissue).n_spots == N


@pytest.mark.filterwarnings("ignore::pyrosplice.errors.NonSpatialWarning")
def test_spots_at_one_position_are_said_with_what_to_do(tissue):
    tissue.obsm["spatial"] = np.concatenate([tissue.obsm["spatial"][:18]] * 2)
    tissue.obs["section"] = np.repeat(["s", "t"], 18)
    with pytest.warns(UserWarning, match="36 of 36 spots share their position .*section_key"):
        set_up(tissue, "glmm-full")
    assert set_up(tissue, "glmm-full", section_key="section").n_spots == N


@given(st.permutations(range(N)))
@settings(max_examples=10)
def test_names_in_any_order_mean_the_same_in_setup_data(order):
    tissue = tissue_of(seed=1, covariates=("smooth", "iid"))
    table = tissue.obs[["smooth", "half"]].iloc[list(order)]
    expected = set_up(tissue, design_mtx=["smooth", "half"])
    assert torch.equal(set_up(tissue, design_mtx=table).design_mtx, expected.design_mtx)
    tissue.obs_names = [str(i) for i in range(N)]
    renamed = table.set_axis(list(order), axis=0)
    assert torch.equal(set_up(tissue, design_mtx=renamed).design_mtx, expected.design_mtx)


COUNTS = RNG.poisson(3, (N, 3))
NAMES = pd.Index([f"spot{i}" for i in range(N)])
FRAME = pd.DataFrame(COUNTS, index=NAMES, columns=list("abc"))
Z = RNG.standard_normal((N, 1))
TABLE = pd.DataFrame(Z, index=NAMES, columns=["z"])
CONTAINERS = {
    "list": COUNTS.tolist(),
    "objects": COUNTS.astype(object),
    "frame": FRAME,
    "nullable frame": FRAME.astype("Int64"),
    "CSR": sp.csr_matrix(COUNTS),
    "COO": sp.coo_matrix(COUNTS),
    "tensor": torch.tensor(COUNTS),
    "with a gradient": torch.tensor(COUNTS, dtype=torch.float64, requires_grad=True),
    "sparse tensor": torch.tensor(COUNTS).to_sparse(),
    "list of frames": [FRAME],
    "list of sparse": [sp.csr_matrix(COUNTS)],
    "list of tensors": [torch.tensor(COUNTS)],
    "unsigned": COUNTS.astype(np.uint16),
    "bfloat": torch.tensor(COUNTS).to(torch.bfloat16),
    "read only": np.broadcast_to(COUNTS, (1, N, 3)),
    "objects of a batch": COUNTS[None].astype(object),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_models_of_a_batch_take_counts_of_every_container(kind):
    expected, model = MultinomGLM(), MultinomGLM()
    expected.setup_data(COUNTS, design_mtx=Z)
    model.setup_data(CONTAINERS[kind], design_mtx=Z)
    assert torch.equal(model.counts, expected.counts)
    assert not model.counts.requires_grad


@pytest.mark.parametrize(
    "bad", [COUNTS.astype(str), COUNTS + 0j, torch.tensor(COUNTS + 0j), np.ma.masked_equal(COUNTS, 3), "counts", {1}]
)
def test_models_of_a_batch_refuse_what_is_no_count(bad):
    with pytest.raises(InvalidArgumentError, match=r"^counts: expected numbers"):
        MultinomGLM().setup_data(bad)
    with pytest.raises(InvalidArgumentError, match=r"^design_mtx: expected"):
        MultinomGLM().setup_data(COUNTS, design_mtx=bad)


@given(st.permutations(range(N)))
@settings(max_examples=10)
def test_models_of_a_batch_pair_tables_by_name(order):
    order = list(order)
    expected, model, covariance = MultinomGLMM(), MultinomGLMM(), CarCovariance(sp.diags([1.0, 1.0], [-1, 1], (N, N)))
    dense = covariance.dense().numpy()
    expected.setup_data(COUNTS, corr_sp=dense, design_mtx=Z)
    table = pd.DataFrame(dense, index=NAMES, columns=NAMES).iloc[order]
    for counts in (FRAME, [FRAME, FRAME.iloc[order]]):
        model.setup_data(counts, corr_sp=table, design_mtx=TABLE.iloc[order])
        assert torch.equal(model.design_mtx, expected.design_mtx)
        assert torch.equal(model.counts[-1], expected.counts[0])
        torch.testing.assert_close(model._engine.dense_covariance(), expected._engine.dense_covariance())
    values, vectors = np.linalg.eigh(dense)
    pairs = {"corr_sp_eigvals": pd.Series(values), "corr_sp_eigvecs": pd.DataFrame(vectors, index=NAMES).iloc[order]}
    model.setup_data(FRAME, **pairs)
    torch.testing.assert_close(model._engine.dense_covariance(), torch.from_numpy(dense))


@pytest.mark.parametrize("argument", ["design_mtx", "corr_sp", "counts"])
def test_models_of_a_batch_refuse_names_that_agree_in_part(argument):
    dense = pd.DataFrame(np.eye(N) + 0.01, index=NAMES, columns=NAMES)
    given_arguments = {"counts": FRAME, "design_mtx": TABLE, "corr_sp": dense}
    other = given_arguments[argument].rename(index={"spot3": "other"})
    given_arguments[argument] = [FRAME, other] if argument == "counts" else other
    with pytest.raises(InvalidArgumentError, match=rf"^{argument}: expected all 36 names of the spots"):
        MultinomGLMM().setup_data(**given_arguments)


WRONG = {
    "spatial_key": 3,
    "adj_key": "none",
    "layer": ["counts"],
    "group_iso_by": None,
    "gene_names": 3,
    "group_gene_by_n_iso": "no",
    "design_mtx": {"a": 1},
    "covariate_names": "iid",
    "min_counts": "10",
    "min_bin_pct": None,
    "min_component_size": 2.5,
    "covariance": object(),
    "section_key": ["half"],
    "effects": 3,
    "missing": "ignore",
}


def test_every_argument_of_setup_data_is_checked(tissue):
    arguments = set(inspect.signature(SplisosmGLMM.setup_data).parameters) - {"self", "adata"}
    assert arguments == set(WRONG)
    for name, value in WRONG.items():
        more = {"design_mtx": "iid"} if name == "covariate_names" else {}
        with pytest.raises(InvalidArgumentError, match=rf"^{name}:"):
            set_up(tissue, "glmm-full", **{name: value}, **more)


FIT = {"n_jobs": 1.5, "batch_size": 2.5, "random_seed": "a"} | dict.fromkeys(
    ("quiet", "print_progress", "with_design_mtx", "from_null", "refit_null"), "no"
)


def test_every_argument_of_fit_is_checked(tissue):
    assert set(inspect.signature(SplisosmGLMM.fit).parameters) - {"self"} == set(FIT)
    model = set_up(tissue, design_mtx="iid")
    for name, value in FIT.items():
        with pytest.raises(InvalidArgumentError, match=rf"^{name}:"):
            model.fit(**{name: value})


@pytest.mark.parametrize("kind", [SplisosmGLMM, MultinomGLM, MultinomGLMM])
def test_no_option_is_taken_that_is_not_honored(kind):
    for key in ("learning_rate", "Lr", "max_iter", 1):
        with pytest.raises(InvalidArgumentError, match=r"fitting_configs: expected one of 'lr', 'max_epochs'.*found"):
            kind(fitting_configs={key: 1})
    for method in (kind.__init__, kind.setup_data, kind.fit):
        kinds = {parameter.kind for parameter in inspect.signature(method).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds  # so that Python refuses names that it does not know
    assert kind(fitting_configs={"lr": np.float32(0.25), "max_epochs": np.int64(5)}).fitting_configs["lr"] == 0.25


def test_options_of_numpy_and_torch_survive_the_file(tissue, tmp_path):
    model = SplisosmGLMM(
        k_neighbors=np.int64(4), rho=np.float32(0.5), share_variance=np.True_, device=torch.device("cpu")
    )
    model.setup_data(tissue)
    model.save(tmp_path / "model")
    assert SplisosmGLMM.load(tmp_path / "model").rho == 0.5


@pytest.mark.parametrize("where", ["obs", "var"])
def test_a_model_of_odd_columns_is_saved_and_loaded(tissue, tmp_path, where):
    table = getattr(tissue, where)
    table["gaps"] = pd.array([None, *["a"] * (len(table) - 1)], dtype="string")
    table["sets"] = [{i} for i in range(len(table))]
    model = set_up(tissue, missing="drop")
    model.fit(**QUIET)
    model.save(tmp_path / "model")
    again = SplisosmGLMM.load(tmp_path / "model")
    pd.testing.assert_frame_equal(getattr(again.filtered_adata, where), getattr(model.filtered_adata, where))
    table["objects"] = [object()] * len(table)
    with pytest.raises(InvalidArgumentError, match=rf"adata\.{where}\['objects'\].*cannot be stored"):
        model.setup_data(tissue)


def test_the_summary_is_computed_once(tissue):
    model = set_up(tissue)
    for level in ("gene", "isoform"):
        assert model.extract_feature_summary(level, **QUIET) is model.extract_feature_summary(level, **QUIET)


def test_columns_whose_names_are_numbers(tissue):
    tissue.obs[1], tissue.obs[2] = np.repeat(["s", "t"], 18), LABELS
    model = set_up(tissue, "glmm-full", section_key="1", design_mtx="2")
    assert model.covariate_names == ["2_a", "2_b", "2_c"]
    assert model._prepared.n_sections == 2


def test_a_given_covariance_is_that_of_the_spots_or_refused(tissue):
    class Own:
        def dense(self):
            return torch.eye(30, dtype=torch.float64)

    with pytest.raises(InvalidArgumentError, match="covariance: expected that of the 36 spots left, found one of 30"):
        set_up(tissue, "glmm-full", covariance=Own())
    with pytest.raises(InvalidArgumentError, match="covariance: a 'glm' has no spatial effect"):
        set_up(tissue, "glm", covariance=Own())


def test_counts_of_x_are_saved_and_shown(tissue, tmp_path):
    model = set_up(tissue, layer=None)
    model.fit(**QUIET)
    model.save(tmp_path / "model")
    again = SplisosmGLMM.load(tmp_path / "model")
    assert "adata.X" in repr(again)
    assert repr(again) == repr(model)
    expected = set_up(tissue)
    for a, b in zip(again._prepared.counts, expected._prepared.counts, strict=True):
        assert torch.equal(a, b)


def test_what_is_given_in_vain_or_is_no_name_is_refused_before_any_work():
    adata = simulate_isoforms(n_spots=30, n_genes=2, covariates=("iid",), seed=0)
    model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    with pytest.raises(InvalidArgumentError, match=r"layer: .* None reads adata\.X"):
        model.setup_data(adata, layer="count")
    with pytest.raises(InvalidArgumentError, match=r"found str; read a file with anndata\.read_h5ad"):
        model.setup_data("tissue.h5ad")
    with pytest.raises(InvalidArgumentError, match="var_prior_model_params for 'none': expected none, found 'a'"):
        SplisosmGLMM(var_prior_model_params={"a": 1.0})
    model.setup_data(adata, design_mtx="iid")
    for options in ({"early_stop": 3}, {"n_draws": 9}, {"null_law": "boundary"}):
        with pytest.raises(InvalidArgumentError, match=f"{next(iter(options))}: expected "):
            model.test_spatial_variability(method="score", **options)
    model.fit(batch_size=2, with_design_mtx=True, print_progress=False)
    for contrasts in ("iid", {"a": "iid"}, {"a": {"iid": "one"}}):
        with pytest.raises(InvalidArgumentError, match="expected weights, numbers"):
            model.test_differential_usage(method="wald", contrasts=contrasts)
    with pytest.raises(InvalidArgumentError, match="genes: expected names of genes, found 0"):
        model.posterior(0)
    with pytest.raises(KeyError, match=r"'gene_9' is not one of the 2 genes in gene_names: \['gene_1'"):
        model.posterior("gene_9")
