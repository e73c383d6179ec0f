"""Charts of tables: every number at its place, comparable axes, one legend; and PNGs whose key colors are exact."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.container import ErrorbarContainer
from PIL import Image

from cassl_lib import plotting
from cassl_lib.plotting.style import WIDTH

ROWS = {
    "ImageNet": {"cls-specific AP": [30.0, 32.0], "finetuned det AP": [41.0], "finetuned PQ": []},
    "Entities": {"cls-specific AP": [], "finetuned det AP": [44.0, 45.0, 46.0], "finetuned PQ": [50.0]},
}
PRINTED = {
    "ImageNet": {"cls-specific AP": 35.9, "finetuned det AP": 46.8, "finetuned PQ": 41.4},
    "Entities": {"cls-specific AP": None, "finetuned det AP": 48.2, "finetuned PQ": 43.7},
}


def ours(axis):
    """Mean, row and standard deviation of every error bar, rows rounded."""
    bars = [each for each in axis.containers if isinstance(each, ErrorbarContainer)]
    values = []
    for marker, _, lines in bars:
        ((x, y),) = marker.get_xydata()
        segments = [segment for line in lines for segment in line.get_segments()]
        values.append((x, round(y), (segments[0][1][0] - segments[0][0][0]) / 2 if segments else None))
    return values


def theirs(axis):
    points = [line.get_xydata().tolist()[0] for line in axis.lines if line.get_marker() == "D"]
    return [(x, round(y)) for x, y in points]


def test_table_chart_shows_mean_and_std_beside_the_paper():
    figure = plotting.table_chart(ROWS, PRINTED)
    assert [axis.get_xlabel() for axis in figure.axes] == ["class-specific AP", "finetuned box AP", "finetuned PQ"]
    specific, box, panoptic = figure.axes
    assert ours(specific) == [(31, 0, pytest.approx(2**0.5))]
    assert ours(box) == [(41, 0, None), (45, 1, pytest.approx(1))]
    assert ours(panoptic) == [(50, 1, None)]
    assert theirs(specific) == [(35.9, 0)] and theirs(box) == [(46.8, 0), (48.2, 1)]
    assert [text.get_text() for text in specific.get_yticklabels()] == ["ImageNet", "Entities"]


def test_table_chart_panels_of_one_metric_have_the_same_limits():
    specific, box, panoptic = plotting.table_chart(ROWS, PRINTED).axes
    assert specific.get_xlim() == box.get_xlim() != panoptic.get_xlim()
    low, high = box.get_xlim()
    assert low < 31 - 2**0.5 and 48.2 < high


def test_table_chart_columns_may_name_a_condition():
    cells = {f"warm-up {n}x, finetuned det AP": [40.0 + n] for n in range(1, 6)}
    printed = dict.fromkeys(cells, 47.0)
    figure = plotting.table_chart({"1x": cells}, {"1x": printed})
    assert [axis.get_title() for axis in figure.axes] == [f"warm-up {n}x" for n in range(1, 6)]
    assert {axis.get_xlabel() for axis in figure.axes} == {"finetuned box AP"}
    assert len({axis.get_xlim() for axis in figure.axes}) == 1
    assert {axis.get_subplotspec().rowspan.start for axis in figure.axes} == {0}  # side by side


def test_table_chart_has_one_legend_and_cuts_off_nothing():
    names = [f"class-agnostic object {kind} AP" for kind in ("box", "mask")] + ["entity AP", "finetuned det AP"]
    names += ["cls-specific AP", "finetuned mask AP", "finetuned PQ"]
    rows = {row: {name: [40.0 + n, 41.0 + n] for n, name in enumerate(names)} for row in ("ImageNet", "Objects (P,A)")}
    figure = plotting.table_chart(rows, {row: dict.fromkeys(names, 44.0) for row in rows})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["this repo (mean ± std over seeds)", "paper"]
    assert all(axis.get_legend() is None for axis in figure.axes)
    figure.draw_without_rendering()
    texts = [legend, *(text for axis in figure.axes if axis.get_visible() for text in (axis.xaxis.label, axis.title))]
    boxes = [text.get_window_extent() for text in texts]
    assert all(0 <= box.x0 and box.x1 <= WIDTH * figure.dpi and 0 <= box.y0 for box in boxes)
    assert all(box.y1 <= figure.bbox.y1 for box in boxes)
    shown = [box for box in boxes if box.width > 0 and box.height > 0]
    assert not any(one.overlaps(other) for n, one in enumerate(shown) for other in shown[:n])


def test_table_chart_without_numbers_of_the_paper_has_no_paper_in_its_legend():
    figure = plotting.table_chart({"0.3": {"AP": [40.0]}}, {"0.3": {"AP": None}})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["this repo"]


def test_table_curves_share_the_y_axis_and_one_legend():
    lines = {"warm-up entity AP": {"here": [(1, 30.0), (30, 40.0)], "paper": [(1, 41.0), (30, 42.0)]}}
    lines["finetuned det AP"] = {"here": [(1, 44.0)], "paper": []}
    panels = [{"title": title, "along": title, "lines": lines} for title in "abc"]
    panels.append({"title": "d", "along": "d", "lines": {"finetuned det AP": {"here": [(0.3, 50.0)], "paper": []}}})
    figure = plotting.table_curves(panels)
    assert len({axis.get_ylim() for axis in figure.axes}) == 1
    assert [axis.get_xscale() for axis in figure.axes] == ["log", "log", "log", "linear"]
    names = ["warm-up entity AP", "finetuned box AP", "this repo", "paper"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    assert all(axis.get_legend() is None for axis in figure.axes)
    drawn = [(line.get_marker(), line.get_linestyle(), line.get_xydata().tolist()) for line in figure.axes[0].lines]
    assert drawn == [
        ("D", "--", [[1, 41], [30, 42]]),
        ("o", "-", [[1, 30], [30, 40]]),
        ("o", "-", [[1, 44]]),
    ]
    last = figure.axes[3].lines[0].get_color()
    assert last == figure.axes[0].lines[2].get_color() != figure.axes[0].lines[1].get_color()  # a color means a metric


def test_pngs_have_a_palette_with_exact_key_colors(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 300, 300), dtype=np.uint8)
    boxes = [[20 * n + 5, 5, 20 * n + 20, 20] for n in range(len(plotting.COLORS))]
    figure = plotting.show_images([noise], boxes=[boxes])
    with Image.open(io.BytesIO(plotting.png_bytes(figure))) as image:
        assert image.mode == "P" and image.width == 1000
        pixels = {to_hex(np.array(color) / 255).upper() for color in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    assert len(pixels) <= 128 and pixels >= {*plotting.COLORS, "#FFFFFF"}  # although few pixels have them
    plotting.save_png(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == figure._repr_png_() == plotting.png_bytes(figure)


def test_quantized_colors_are_the_nearest_of_the_palette():
    gradient = np.tile(np.linspace(0, 255, 256).astype(np.uint8), (3, 256, 1))
    with Image.open(io.BytesIO(plotting.png_bytes(plotting.show_images([gradient])))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    middle = pixels[500, 10:-10]
    assert (np.diff(middle[:, 0]) >= 0).all() and np.ptp(middle, axis=1).max() <= 3  # gray, and monotonic
    assert to_rgb("white") == tuple(pixels[0, 0] / 255)
