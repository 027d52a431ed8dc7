"""Figures of whatever tables there are: nothing clipped, covered or illegible, lines where they say that they are."""

import itertools
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from scipy.stats import false_discovery_control

from pyrosplice import plotting
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.plotting import TissueImage, tissue_image, usage_map, usage_table, volcano
from pyrosplice.plotting._point_names import text_box

LONG = "ENSMUST00000123456.7-novel-exon-skipping-of-the-second-$domain$"
assert len(LONG) > 60


@pytest.fixture(autouse=True)
def _headless():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def gene_tests(n, *, seed=0, found=True):
    rng = np.random.default_rng(seed)
    effect = rng.normal(size=n)
    p = np.exp(-np.abs(effect) * rng.exponential(12 if found else 0.01, size=n))
    table = pd.DataFrame({"gene": [f"g{i}" for i in range(n)], "effect": effect, "pvalue": p})
    return table.assign(pvalue_adj=false_discovery_control(p), mean=rng.lognormal(size=n))


def spots(n_isoforms, n_spots, *, seed=0, names=None):
    """A table for maps: spots at random, isoforms of random usage, a third of the spots without counts."""
    rng = np.random.default_rng(seed)
    names = names or [f"isoform {k}" for k in range(n_isoforms)]
    fitted = rng.dirichlet(np.ones(n_isoforms), n_spots)
    raw = np.where(rng.uniform(size=(n_spots, 1)) < 1 / 3, np.nan, rng.dirichlet(np.full(n_isoforms, 0.3), n_spots))
    x, y = np.tile(rng.uniform(0, 5000, (n_spots, 2)), (n_isoforms, 1)).T
    columns = {"raw": raw.ravel("F"), "fitted": fitted.ravel("F")}
    return pd.DataFrame({"x": x, "y": y, "isoform": np.repeat(names, n_spots), **columns})


def forest(names):
    rows = [{"gene": name, "label": f"age: {name}", "mean": 1.0, "lower": 0.5, "upper": 2.0} for name in names]
    return pd.DataFrame(rows).assign(probability=0.9)


def checks(names):
    numbers = {"observed": 1.0, "mean": 1.0, "lower": 0.5, "upper": 2.0}
    return pd.DataFrame([{"gene": name, "statistic": "zeros", **numbers} for name in names])


def distances(names):
    place = np.arange(float(len(names)))
    return pd.DataFrame(np.abs(place[:, None] - place), index=names, columns=names)


FIGURES = {
    "volcano": lambda: volcano(gene_tests(400)),
    "volcano, nothing found": lambda: volcano(gene_tests(50, found=False)),
    "volcano, one gene": lambda: volcano(gene_tests(1)),
    "volcano, p of 0, infinite and missing": lambda: volcano(hard_table(), min_effect=0.3),
    "volcano, long names": lambda: volcano(gene_tests(40).assign(gene=[f"{LONG}{i}" for i in range(40)])),
    "ma": lambda: plotting.ma(gene_tests(400), min_effect=0.5),
    "ma, infinite": lambda: plotting.ma(hard_table()),
    "qq": lambda: plotting.qq(gene_tests(400)),
    "histogram": lambda: plotting.pvalue_histogram(gene_tests(400)),
    "one spot": lambda: usage_map(spots(2, 1)),
    "one isoform": lambda: usage_map(spots(1, 50)),
    "thirty isoforms": lambda: usage_map(spots(30, 10), title=LONG),
    "isoforms of long names": lambda: usage_map(spots(3, 40, names=[f"{LONG}{k}" for k in range(3)]), scale="gene"),
    "posterior sd": lambda: usage_map(spots(3, 40).assign(sd=0.1), title="a gene"),
    "forest": lambda: plotting.effect_forest(forest([LONG, "b"])),
    "checks": lambda: plotting.predictive_intervals(checks([LONG, "b"])),
    "distances": lambda: plotting.patient_distance_map(distances([LONG, "b", "c"])),
    "heatmap": lambda: plotting.heatmap(np.arange(9.0), np.random.default_rng(0).normal(size=(9, 2)), [LONG, "b"]),
    "dispersion": lambda: plotting.dispersion(np.array([0.0, 1, 2]), np.array([1, np.nan, 3])),
    "truth": lambda: plotting.estimate_vs_truth(pd.DataFrame({"truth": [0.0, 1.0], "estimate": [0.1, 0.8]})),
    "mixture": lambda: plotting.mixture_components(np.zeros((3, 2)), [1.0], [[0.0, 0]], [np.eye(2)], title=LONG),
    "ranks": lambda: plotting.rank_histogram(np.arange(100), n_draws=99),
    "rank ecdf": lambda: plotting.rank_ecdf(pd.DataFrame({"_sigma": np.arange(50), "b": np.arange(50)}), n_draws=99),
    "rootogram": lambda: plotting.rootogram(np.arange(9), np.tile(np.arange(9), (5, 1))),
    "traces": lambda: plotting.convergence_traces(np.geomspace(1, 1e-3, 9)[:, None]),
}


def hard_table():
    table = gene_tests(200)
    table.loc[:3, ["pvalue", "pvalue_adj"]] = 0.0
    table.loc[4:5, "effect"] = [np.inf, -np.inf]
    table.loc[4:5, ["pvalue", "pvalue_adj"]] = 1e-8
    table.loc[6, "effect"] = table.loc[7, "pvalue"] = np.nan
    table.loc[8, "mean"] = 0.0
    return table


def drawn(name, style="default"):
    """The figure of that name, drawn in a style."""
    with plt.style.context(style):
        FIGURES[name]()
        figure = plt.gcf()
        figure.draw_without_rendering()
    return figure


def nothing_is_clipped(figure):
    box, (width, height) = figure.get_tightbbox(figure.canvas.get_renderer()), figure.get_size_inches()
    return min(box.x0, box.y0) > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02


def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


@pytest.mark.parametrize("style", ["default", "dark_background"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "thirty" in name else name for name in FIGURES]
)
def test_nothing_is_clipped_and_every_text_and_line_can_be_told_from_the_paper(name, style):
    figure = drawn(name, style)
    assert nothing_is_clipped(figure)
    paper = luminance(figure.get_facecolor())

    def contrast(color):
        bright, dim = sorted([luminance(color), paper], reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    lines = [line for ax in figure.axes for line in ax.lines]
    assert texts and min(contrast(text.get_color()) for text in texts) > 4.5
    assert all(contrast(line.get_color()) > 2 for line in lines)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_names_cover_no_other_and_stay_inside_with_adjusttext_and_without(installed, seed, monkeypatch):
    if not installed:
        monkeypatch.setitem(sys.modules, "adjustText", None)
    ax = volcano(gene_tests(300, seed=seed), n_labels=10)
    ax.figure.canvas.draw()
    boxes = [text_box(text) for text in ax.texts]
    assert len(boxes) == 10
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in boxes)


def cut_of(ax):
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    return 10 ** -dashed[0].get_ydata()[0] if dashed else None


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([0.01, 0.05, 0.3]))
def test_line_parts_what_the_title_says(seed, n, alpha):
    table = gene_tests(n, seed=seed)
    cut = cut_of(volcano(table, alpha=alpha, n_labels=0, ax=plt.figure().subplots()))
    found = table["pvalue_adj"] <= alpha
    plt.close("all")
    if not found.any():
        assert cut is None
    else:
        assert ((table["pvalue"] <= cut * (1 + 1e-9)) == found).all()
        assert cut == pytest.approx(alpha * found.sum() / n)


def test_line_over_adjusted_p_is_at_alpha_whatever_was_found():
    for found in (True, False):
        assert cut_of(volcano(gene_tests(50, found=found), pvalue="pvalue_adj")) == pytest.approx(0.05)


def test_line_of_part_of_a_table_is_at_its_largest_significant_p_and_of_mixed_ones_nowhere():
    table = gene_tests(100)
    part = table.iloc[::3]
    assert cut_of(volcano(part)) == pytest.approx(part.loc[part["pvalue_adj"] <= 0.05, "pvalue"].max())
    mixed = pd.DataFrame(
        {"gene": list("abc"), "effect": 1.0, "pvalue": [0.01, 0.02, 0.03], "pvalue_adj": [0.01, 0.2, 0.04]}
    )
    ax = volcano(mixed)
    assert cut_of(ax) is None and "no one p" in ax.get_legend().get_title().get_text()


def test_effects_that_are_infinite_or_missing_and_p_of_zero_are_drawn_beyond_the_others_or_counted():
    table = hard_table()
    ax = volcano(table)
    every = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections[:3]])
    assert len(every) == len(table) - 2 and np.isfinite(every).all()
    names = {c.get_label() for c in ax.collections[3:]}
    assert names == {"p = 0: 4", "effect −∞: 1", "effect ∞: 1"}
    assert every[:, 1].max() > -np.log10(table.loc[table["pvalue"] > 0, "pvalue"].min())
    assert "left out, without an effect or a place: 2" in ax.get_legend().get_title().get_text()


def test_many_points_are_pixels_in_vector_files():
    big, small = volcano(gene_tests(20_000), n_labels=0), volcano(gene_tests(20), n_labels=0)
    assert all(c.get_rasterized() for c in big.collections) and not any(c.get_rasterized() for c in small.collections)
    many = usage_map(spots(1, 100_000))
    assert all(c.get_rasterized() for ax in many.ravel() for c in ax.collections)


def test_isoforms_follow_each_other_in_rows():
    axes = usage_map(spots(8, 20), n_columns=3)
    assert axes.shape == (6, 3)
    assert [ax.get_title() for ax in axes[::2].ravel() if ax.get_visible()] == [f"isoform {k}" for k in range(8)]
    assert [ax.get_visible() for ax in axes[4]] == [True, True, False]


@pytest.mark.parametrize("options", [{"scale": "gene"}, {"limits": (0.1, 0.2)}])
def test_one_scale_has_one_colour_bar(options):
    table = spots(3, 30)
    axes = usage_map(table, **options)
    scales = {ax.collections[1].get_clim() for ax in axes.ravel()}
    (scale,) = scales
    assert scale == pytest.approx(options.get("limits") or (table["fitted"].min(), table["fitted"].max()))
    assert [ax.get_ylabel() for ax in axes[0, 0].figure.axes[6:]] == ["usage"]


def test_y_runs_downwards_unless_asked_otherwise():
    table = spots(2, 30)
    assert usage_map(table)[0, 0].yaxis_inverted() and not usage_map(table, y_down=False)[0, 0].yaxis_inverted()


def test_spots_are_drawn_to_scale():
    grid = spots(1, 100)
    grid[["x", "y"]] = np.stack(np.meshgrid(np.arange(10), np.arange(10)), -1).reshape(-1, 2) * 7.0
    ax = usage_map(grid)[0, 0]
    assert ax.collections[1].get_widths()[0] == pytest.approx(7.0)
    assert usage_map(grid, spot_diameter=3.0)[0, 0].collections[1].get_widths()[0] == pytest.approx(3.0)


def test_maps_take_the_place_of_axes_of_a_grid():
    figure, (left, right) = plt.subplots(1, 2, layout="constrained", figsize=(8, 4))
    axes = usage_map(spots(2, 30), ax=right, title="here")
    figure.canvas.draw()
    assert left in figure.axes and right not in figure.axes
    assert all(ax.bbox.x0 > left.bbox.x1 and ax.bbox.x1 < figure.bbox.x1 for ax in axes.ravel())
    with pytest.raises(InvalidArgumentError, match="axes of a grid"):
        usage_map(spots(2, 30), ax=plt.figure().add_axes((0, 0, 1, 1)))


@pytest.fixture
def visium():
    """Two libraries as squidpy keeps them."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (20, 2))
    section = {
        "images": {"hires": rng.uniform(size=(30, 20, 3)), "lowres": rng.integers(0, 255, (3, 2), dtype=np.uint8)},
        "scalefactors": {"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.01, "spot_diameter_fullres": 12.5},
    }
    return AnnData(
        counts.astype(np.float32),
        obs=pd.DataFrame({"library_id": ["A", "B"] * 10}, index=[str(i) for i in range(20)]),
        obsm={"spatial": rng.uniform(0, 200, (20, 2))},
        layers={"counts": counts, "fitted_ratios": np.full((20, 2), 0.5)},
        uns={"spatial": {"A": section, "B": section}},
    )


def test_pictures_and_sizes_of_spots_come_from_the_anndata(visium):
    picture = tissue_image(visium, library="A")
    assert picture.extent == (0.0, 200.0, 300.0, 0.0) and picture.spot_diameter == 12.5
    table = usage_table(visium, ["0", "1"], library_key="library_id")
    axes = usage_map(table, tissue={"A": picture, "B": tissue_image(visium, library="B", image="lowres", alpha=0.5)})
    assert axes.shape == (4, 2) and [ax.get_title() for ax in axes[::2, 0]] == ["A: 0", "B: 0"]
    assert axes[0, 0].images[0].get_extent() == list(picture.extent) and axes[2, 0].images[0].get_alpha() == 0.5
    assert axes[0, 0].collections[1].get_widths()[0] == 12.5
    whole = usage_map(table, crop=(0, 200, 0, 300))[0, 0]
    assert whole.get_xlim() == (0, 200) and whole.get_ylim() == (300, 0)


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda a: tissue_image(a), r"library: expected one of \['A', 'B'\]"),
        (lambda a: tissue_image(a, library="C"), "library.*'C'"),
        (lambda a: tissue_image(a, library="A", image="full"), "image.*'full'"),
        (lambda a: tissue_image(a, spatial_key="place"), "spatial_key.*'place'"),
        (lambda a: usage_map(spots(2, 9), tissue={"A": tissue_image(a, library="A")}), "tissue.*none for"),
        (lambda a: usage_map(spots(2, 9), crop=(1, 0, 0, 1)), "crop"),
        (lambda a: usage_map(spots(2, 9), scale="all"), "scale"),
        (lambda a: usage_map(spots(2, 9), n_columns=0), "n_columns"),
        (lambda a: usage_map(spots(2, 9), spot_diameter=0), "spot_diameter"),
        (lambda a: usage_map(spots(2, 9).assign(x=np.nan)), "coordinates"),
        (lambda a: TissueImage(pixels=np.full((2, 2), 300), scale=1.0), "0 to 255"),
        (lambda a: TissueImage(pixels=np.zeros(3), scale=1.0), "shape"),
        (lambda a: TissueImage(pixels=np.zeros((2, 2)), scale=0.0), "scale"),
        (lambda a: usage_table(a, ["0", "0"]), "once"),
        (lambda a: usage_table(a, ["0"], library_key="slide"), "library_key"),
        (lambda a: volcano(gene_tests(5), n_labels=-1), "n_labels"),
        (lambda a: volcano(gene_tests(5), min_effect=-1), "min_effect"),
        (lambda a: plotting.heatmap(np.zeros(3), np.zeros((2, 1)), ["a"]), "curves"),
        (lambda a: plotting.effect_forest(forest(["a", "b"]).assign(probability=[0.9, 0.5])), "one probability"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(visium, draw, says):
    with pytest.raises(InvalidArgumentError, match=says):
        draw(visium)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_lowest_and_highest_values_of_a_map_can_be_told_apart_and_the_lowest_from_dark_paper(style):
    with plt.style.context(style):
        colors = usage_map(spots(1, 9))[0, 0].collections[1].get_cmap()
    low, high = luminance(colors(0.0)[:3]), luminance(colors(1.0)[:3])
    assert (high + 0.05) / (low + 0.05) > 5
    assert style == "default" or (low + 0.05) / 0.05 > 2


OF_TESTS = {
    "volcano": (plotting.volcano, ["effect", "pvalue", "pvalue_adj"]),
    "ma": (plotting.ma, ["effect", "mean", "pvalue_adj"]),
    "qq": (plotting.qq, ["pvalue"]),
}


@pytest.mark.parametrize("figure", OF_TESTS)
@pytest.mark.parametrize("given", [3, None, "table", [0.1, 0.2], np.ones(3), pd.Series([0.1]), {"pvalue": [0.1]}])
def test_what_is_no_table_is_refused(figure, given):
    with pytest.raises(InvalidArgumentError, match="table: expected a DataFrame, found"):
        OF_TESTS[figure][0](given)


@pytest.mark.parametrize(("figure", "column"), [(name, column) for name in OF_TESTS for column in OF_TESTS[name][1]])
def test_columns_that_hold_no_numbers_or_stand_twice_are_refused(figure, column):
    draw, table = OF_TESTS[figure][0], gene_tests(5)
    for dtype in ("Float64", "float32", object):  # which are numbers, missing ones too
        same = table.astype({column: dtype})
        same.loc[1, column] = pd.NA if dtype == "Float64" else np.nan
        draw(same)
    with pytest.raises(InvalidArgumentError, match=f"'{column}'.: expected numbers"):
        draw(table.assign(**{column: "x"}))
    with pytest.raises(InvalidArgumentError, match="once, found several of that name"):
        draw(pd.concat([table, table[[column]]], axis=1))
