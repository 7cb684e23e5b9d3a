"""Tables, figures and pages hold what they are given, and nothing that a browser must fetch."""

import numpy as np

from fsq_jax.reports import html


def test_tables_as_text_and_html():
    table = html.Table(("", "a<b"), [("row", "1"), ("longer row", "22")], caption="c & d")
    lines = table.text().splitlines()
    assert lines[2] == "| row        | 1   |"
    assert len({len(line) for line in lines}) == 1
    assert "<th>a&lt;b</th>" in table.html() and "c &amp; d" in table.html()


def test_codes_are_sorted_and_split_into_levels():
    counts_K = np.arange(6)
    axes = html.codes_figure({"FSQ": counts_K, "VQ": np.ones(4)}, levels=(2, 3)).axes
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), np.arange(6)[::-1] / 15)
    heights = [[bar.get_height() for bar in axis.patches] for axis in axes[1:]]
    np.testing.assert_allclose(heights[0], np.array([6, 9]) / 15)
    np.testing.assert_allclose(heights[1], np.array([1, 5, 9]) / 15)


def test_page_is_self_contained():
    figure, _ = html.panels(2, 1, (2.0, 1.0))
    table = html.Table(("a",), [("b",)])
    text = html.page("A & B", {"One": ["x < y", table], "Two": [figure]})
    assert "<h1>A &amp; B</h1>" in text and "<p>x &lt; y</p>" in text and "<table>" in text
    assert text.count('src="data:image/png;base64,') == text.count("<img") == 1
