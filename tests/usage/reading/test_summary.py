import numpy as np
import pytest

from pyrosplice._usage.reading.isoforms import read_isoforms
from pyrosplice._usage.reading.summary import feature_summary
from pyrosplice.errors import InvalidArgumentError


def test_gene_table_by_hand(tissue):
    table = feature_summary(read_isoforms(tissue))
    assert list(table.columns) == ["n_isos", "perplexity", "pct_bin_on", "count_avg", "count_std"]
    assert list(table.index) == ["A", "B"]
    counts = tissue.layers["counts"].toarray()[:, [1, 4]].astype(float)
    total = counts.sum(1)
    usage = counts.sum(0) / counts.sum()
    expected = [2, np.prod(usage**-usage), (total > 0).mean(), total.mean(), total.std(ddof=1)]
    np.testing.assert_allclose(table.loc["B"].to_numpy(float), expected)
    assert table["n_isos"].dtype.kind == "i"


def test_isoform_table_by_hand(tissue):
    data = read_isoforms(tissue)
    table = feature_summary(data, level="isoform")
    added = ["pct_bin_on", "count_total", "count_avg", "count_std", "ratio_total", "ratio_avg", "ratio_std"]
    assert list(table.columns) == ["gene_symbol", "label", *added]
    assert list(table.index) == list(data.adata.var_names)
    counts = tissue.layers["counts"].toarray()[:, [1, 4]].astype(float)
    one, total = counts[:, 1], counts.sum(1)
    ratio = one[total > 0] / total[total > 0]
    expected = [(one > 0).mean(), one.sum(), one.mean(), one.std(ddof=1), one.sum() / total.sum(), ratio.mean()]
    np.testing.assert_allclose(table.loc["iso4", added].to_numpy(float), [*expected, ratio.std(ddof=1)])


def test_unknown_level(tissue):
    with pytest.raises(InvalidArgumentError, match=r"level: .*found 'spot'"):
        feature_summary(read_isoforms(tissue), level="spot")
