"""The figures show the numbers of their tables: asserted on the artists."""

import itertools
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.text import Text
from scipy import sparse

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.plotting import (
    TissueImage,
    dispersion,
    estimate_vs_truth,
    heatmap,
    ma,
    mixture_components,
    pvalue_histogram,
    qq,
    usage_map,
    usage_table,
    volcano,
)


@pytest.fixture(autouse=True)
def _headless():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def uniform_table(size):
    """P-values exactly at the expected quantiles, in mixed order, one missing."""
    values = np.random.default_rng(0).permutation(np.arange(1, size + 1) / (size + 1))
    return pd.DataFrame({"pvalue": np.append(values, np.nan), "covariate": (["a", "b"] * size)[: size + 1]})


def test_qq_puts_expected_quantiles_on_the_diagonal_inside_the_band():
    ax = qq(uniform_table(99))
    x, y = ax.lines[0].get_data()
    assert x.size == 99
    np.testing.assert_allclose(y, x)
    (band,) = ax.collections
    vertices = band.get_paths()[0].vertices
    for expected in x[[0, 40, 98]]:
        heights = vertices[np.isclose(vertices[:, 0], expected), 1]
        assert heights.min() < expected < heights.max()
    assert "1 missing" in ax.get_legend().get_texts()[0].get_text()


def test_qq_band_covers_the_stated_share_of_uniform_minima():
    rng = np.random.default_rng(1)
    vertices = qq(uniform_table(20), confidence=0.8).collections[0].get_paths()[0].vertices
    smallest = -np.log10(1 / 21)
    band = vertices[np.isclose(vertices[:, 0], smallest), 1]
    minima = -np.log10(rng.uniform(size=(20_000, 20)).min(1))
    inside = (minima > band.min()) & (minima < band.max())
    assert abs(inside.mean() - 0.8) < 0.015


def test_qq_draws_a_curve_for_each_group_and_survives_a_zero():
    table = uniform_table(10)
    table.loc[0, "pvalue"] = 0.0
    ax = qq(table, by="covariate")
    curves = [line for line in ax.lines if line.get_marker() != "None"]
    assert [line.get_xdata().size for line in curves] == [5, 5]
    assert len({line.get_color() for line in curves}) == 2
    assert all(np.isfinite(line.get_ydata()).all() for line in curves)


def test_histogram_counts_the_bins():
    table = pd.DataFrame({"pvalue": [0.01, 0.02, 0.3, 0.99, 1.0, np.nan]})
    ax = pvalue_histogram(table, n_bins=4)
    assert [patch.get_height() for patch in ax.patches] == [2, 1, 0, 2]
    assert ax.lines[0].get_ydata()[0] == 5 / 4


@pytest.fixture
def effects():
    return pd.DataFrame(
        {
            "gene": ["up", "down", "weak", "none", "lost"],
            "effect": [1.0, -2.0, 0.5, 0.1, np.nan],
            "pvalue": [1e-8, 1e-12, 1e-3, 0.4, 1e-20],
            "pvalue_adj": [5e-8, 5e-12, 2e-3, 0.4, 5e-20],
        }
    )


def test_volcano_sorts_genes_by_significance_and_sign(effects):
    ax = volcano(effects, n_labels=2)
    gray, lower, higher = (np.asarray(c.get_offsets()) for c in ax.collections)
    np.testing.assert_allclose(gray, [[0.1, -np.log10(0.4)]])
    np.testing.assert_allclose(lower, [[-2.0, 12.0]])
    np.testing.assert_allclose(higher, [[1.0, 8.0], [0.5, 3.0]])
    assert {text.get_text() for text in ax.texts} == {"up", "down"}
    threshold = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert threshold[0].get_ydata()[0] == pytest.approx(3.0)


def test_volcano_names_do_not_cover_each_other():
    table = pd.DataFrame(
        {"gene": [f"g{i}" for i in range(5)], "effect": 1.0, "pvalue": 1e-9 * (1 + np.arange(5) / 100)}
    ).assign(pvalue_adj=1e-8)
    ax = volcano(table)
    ax.figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 5
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_volcano_names_what_is_asked_for_and_draws_tiny_p_at_the_floor(effects):
    ax = volcano(effects, names=["none"], floor=1e-10, min_effect=0.7)
    assert [text.get_text() for text in ax.texts] == ["none"]
    gray, lower, higher, below = (np.asarray(c.get_offsets()) for c in ax.collections)
    np.testing.assert_allclose(lower, [[-2.0, 10.0]])
    np.testing.assert_allclose(below, lower)
    np.testing.assert_allclose(higher, [[1.0, 8.0]])
    assert len(gray) == 2  # "weak" is significant and too small
    by_adjusted = volcano(effects, pvalue="pvalue_adj")
    assert "adjusted" in by_adjusted.get_ylabel() and "adjusted" not in ax.get_ylabel()


def test_names_stay_in_the_axes():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"gene": [f"a_long_name_{i}" for i in range(8)], "effect": rng.normal(size=8), "mean": 1.0})
    table["pvalue"] = table["pvalue_adj"] = 10 ** rng.uniform(-9, -4, 8)
    for ax in (volcano(table), ma(table.assign(mean=rng.lognormal(size=8)))):
        ax.figure.canvas.draw()
        boxes = [Text.get_window_extent(text) for text in ax.texts]
        assert len(boxes) == 8
        assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in boxes)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_names_cover_no_point_where_there_is_room():
    table = pd.DataFrame({"gene": ["named", "beside"], "effect": [1.0, 1.1], "pvalue": 1e-9, "pvalue_adj": [1e-9, 1.0]})
    ax = volcano(table, names=["named"])
    ax.figure.canvas.draw()
    box = Text.get_window_extent(ax.texts[0])
    points = ax.transData.transform([[1.0, 9.0], [1.1, 9.0]])
    assert not any(box.contains(*point) for point in points)


def test_ma_has_effects_over_means(effects):
    ax = ma(effects.assign(mean=[10.0, 100.0, 0.0, 3.0, 5.0]), n_labels=1)
    gray, lower, higher = (np.asarray(c.get_offsets()) for c in ax.collections)
    np.testing.assert_allclose(gray, [[3.0, 0.1]])
    np.testing.assert_allclose(lower, [[100.0, -2.0]])
    np.testing.assert_allclose(higher, [[10.0, 1.0]])  # "weak" has mean zero
    assert ax.get_xscale() == "log" and [text.get_text() for text in ax.texts] == ["down"]


def test_dispersions_are_drawn_over_the_mean_and_the_trend_in_order():
    mean, own = np.array([3.0, 1.0, 2.0]), np.array([0.3, 0.1, 0.2])
    ax = dispersion(mean, own, trend=10 * own, shrunk=2 * own)
    gene_wise, shrunken = (np.asarray(c.get_offsets()) for c in ax.collections)
    np.testing.assert_allclose(gene_wise, np.column_stack([mean, own]))
    np.testing.assert_allclose(shrunken[:, 1], 2 * own)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1.0, 2.0, 3.0])
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_heatmap_is_standardized_in_the_order_of_the_covariate():
    ax = heatmap(np.array([2.0, 0.0, 1.0]), np.array([[30.0, 5.0], [10.0, 5.0], [20.0, 5.0]]), ["up", "flat"])
    image = ax.images[0]
    np.testing.assert_allclose(image.get_array(), [[-(1.5**0.5), 0, 1.5**0.5], [0, 0, 0]])
    assert image.get_clim() == pytest.approx((-(1.5**0.5), 1.5**0.5))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["up", "flat"]


def test_mixture_ellipses_hold_half_and_nine_tenths():
    covariance = np.array([[[2.0, 0.6], [0.6, 0.5]]])
    draws = np.random.default_rng(0).multivariate_normal([1.0, -1.0], covariance[0], 20_000)
    ax = mixture_components(draws[:50], [1.0], [[1.0, -1.0]], covariance)
    for ellipse, share in zip(ax.patches, (0.5, 0.9), strict=True):
        inside = ellipse.get_patch_transform().inverted().transform(draws)
        assert (np.hypot(*inside.T) < 1).mean() == pytest.approx(share, abs=0.01)
    assert ax.texts[0].get_text() == "1.00"
    np.testing.assert_allclose(ax.collections[0].get_offsets(), draws[:50])


@pytest.mark.parametrize("draw", [volcano, ma])
@pytest.mark.parametrize("size", [6.0, 10.0, 18.0])
def test_a_title_stands_above_and_the_legend_below_the_names_of_the_axes(effects, draw, size):
    with plt.rc_context({"font.size": size}):
        ax = draw(effects.assign(mean=np.arange(1.0, len(effects) + 1)), effect_name="an effect\nof two lines")
        ax.set_title("A title\nof two lines")
        ax.figure.set_size_inches(7, 7)
        ax.figure.canvas.draw()
    legend, title, name = (one.get_window_extent() for one in (ax.get_legend(), ax.title, ax.xaxis.label))
    assert title.y0 >= ax.get_window_extent().y1 and legend.y1 <= name.y0
    assert all(box.y0 >= 0 and box.y1 <= ax.figure.bbox.height for box in (legend, title))


def test_ma_refuses_negative_means(effects):
    means = [10.0, -0.5, 0.0, np.nan, -3.0][: len(effects)]
    with pytest.raises(InvalidArgumentError, match=r"found -0\.5 in row 1 and 2 negative"):
        ma(effects.assign(mean=means))
    ma(effects.assign(mean=np.abs(means)))


def test_volcano_without_a_discovery_has_no_threshold(effects):
    ax = volcano(effects.assign(pvalue_adj=0.9))
    assert not ax.texts
    assert not [line for line in ax.lines if line.get_linestyle() == "--"]


@pytest.fixture
def tissue():
    counts = np.array([[2, 2, 9], [0, 0, 9], [1, 3, 9], [4, 0, 9]], dtype=np.int32)
    fitted = np.array([[0.4, 0.6, 1], [0.5, 0.5, 1], [0.3, 0.7, 1], [0.6, 0.4, 1]])
    return AnnData(
        counts.astype(np.float32),
        layers={"counts": sparse.csr_matrix(counts), "fitted_ratios": fitted},
        obsm={"spatial": np.array([[0, 0], [1, 0], [0, 1], [1, 1]])},
        var=pd.DataFrame(index=["a", "b", "other"]),
    )


def test_usage_table_has_raw_and_fitted_ratios_of_the_gene(tissue):
    table = usage_table(tissue, ["a", "b"])
    a = table[table.isoform == "a"]
    np.testing.assert_allclose(a.raw, [0.5, np.nan, 0.25, 1.0])
    np.testing.assert_allclose(a.fitted, [0.4, 0.5, 0.3, 0.6])
    np.testing.assert_allclose(a[["x", "y"]], tissue.obsm["spatial"])


def test_usage_map_shares_the_scale_of_raw_and_fitted(tissue):
    axes = usage_map(usage_table(tissue, ["a", "b"]), title="gene")
    assert axes.shape == (2, 2)
    assert [ax.get_title() for ax in axes[0]] == ["a", "b"]
    missing, raw = axes[0, 0].collections
    fitted = axes[1, 0].collections[1]
    np.testing.assert_allclose(missing.get_offsets(), [[1, 0]])
    np.testing.assert_allclose(raw.get_array(), [0.5, 0.25, 1.0])
    np.testing.assert_allclose(fitted.get_array(), [0.4, 0.5, 0.3, 0.6])
    assert raw.get_clim() == fitted.get_clim() == pytest.approx((0.3, 0.6))
    assert axes[0, 1].collections[1].get_clim() == pytest.approx((0.4, 0.7))


def test_usage_map_with_given_limits_uses_them_everywhere(tissue):
    axes = usage_map(usage_table(tissue, ["a", "b"]), limits=(0, 1))
    assert {ax.collections[1].get_clim() for ax in axes.ravel()} == {(0, 1)}


def test_estimate_vs_truth_shows_every_pair_and_the_identity():
    table = pd.DataFrame({"truth": np.arange(10.0), "estimate": np.arange(10.0) + 0.5, "k": ["a", "b"] * 5})
    ax = estimate_vs_truth(table, by="k", name="β")
    shown = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    np.testing.assert_allclose(shown[np.argsort(shown[:, 0])], table[["truth", "estimate"]])
    np.testing.assert_array_equal(*ax.lines[0].get_data())
    assert "bias +0.500, RMSE 0.500" in ax.get_title()


def test_estimate_vs_truth_marks_the_median_of_each_of_few_truths():
    table = pd.DataFrame({"truth": [0.0] * 3 + [1.0] * 3, "estimate": [0, 0.1, 0.8, 0.4, 0.9, 1.0]})
    points, medians = estimate_vs_truth(table).collections
    assert [segment[0, 1] for segment in medians.get_segments()] == [0.1, 0.9]
    offsets = np.asarray(points.get_offsets())
    np.testing.assert_allclose(offsets[:, 1], table.estimate)
    assert np.abs(offsets[:, 0] - table.truth).max() < 0.26


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda: qq(pd.DataFrame({"p": [0.1]})), "pvalue"),
        (lambda: qq(pd.DataFrame({"pvalue": [0.1, 1.5]})), r"\[0, 1\].*1.5.*row 1"),
        (lambda: qq(pd.DataFrame({"pvalue": [np.nan]})), "only missing"),
        (lambda: qq(pd.DataFrame({"pvalue": []})), "at least one row"),
        (lambda: qq(uniform_table(4), confidence=95), "confidence"),
        (lambda: qq(uniform_table(8).assign(g=np.arange(9)), by="g"), "at most 7"),
        (lambda: pvalue_histogram(uniform_table(4), n_bins=0), "n_bins"),
        (lambda: volcano(uniform_table(4)), "effect"),
        (lambda: ma(uniform_table(4)), "mean"),
        (lambda: mixture_components(np.zeros((3, 2)), [1.0], [[0.0, 0.0]], [[1.0, 1.0]]), "one matrix a component"),
        (lambda: estimate_vs_truth(pd.DataFrame({"truth": [np.nan], "estimate": [1.0]})), "no row"),
    ],
)
def test_bad_tables_are_refused_by_name(draw, says):
    with pytest.raises(InvalidArgumentError, match=says):
        draw()


def test_unknown_names_and_a_floor_outside_of_0_to_1_are_refused(effects):
    with pytest.raises(InvalidArgumentError, match="nope"):
        volcano(effects, names=["nope"])
    with pytest.raises(InvalidArgumentError, match="floor"):
        volcano(effects, floor=0.0)


def test_bad_usage_requests_are_refused_by_name(tissue):
    with pytest.raises(InvalidArgumentError, match=r"isoforms.*'c'"):
        usage_table(tissue, ["a", "c"])
    with pytest.raises(InvalidArgumentError, match=r"fitted_layer.*'fit'"):
        usage_table(tissue, ["a"], fitted_layer="fit")
    with pytest.raises(InvalidArgumentError, match="limits"):
        usage_map(usage_table(tissue, ["a"]), limits=(1, 0))


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pyrosplice\[plot\]"):
        qq(uniform_table(4))


@pytest.mark.parametrize(("pixels", "white"), [(np.full((4, 4), 0.8), 1), (np.full((4, 4), 200), 255)])
def test_a_gray_picture_is_as_gray_as_its_pixels_say(tissue, pixels, white):
    picture = TissueImage(pixels=pixels, scale=1.0)
    axes = usage_map(usage_table(tissue, ["a", "b"]), tissue=picture)
    assert {image.get_clim() for ax in axes.flat for image in ax.images} == {(0, white)}
