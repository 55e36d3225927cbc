"""Pictures of cells: nothing cut off, no label on another, the same bytes every time."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from matplotlib.transforms import Bbox
from msgdas.engine.errors import GenotypeError
from msgdas.engine.report.draw import MAX_NODES, alpha_heatmap, draw_cells, operation_label, save_cells
from msgdas.engine.spaces.genotype import CellGenotype, Genotype, from_arch
from msgdas.engine.spaces.genotype_text import parse_tuple_text
from msgdas.engine.spaces.space import DARTS, NASBENCH201, PUBLISHED_OPERATIONS, SearchSpace

AMOEBANET = """Genotype(
  normal=[('avg_pool_3x3', 0), ('max_pool_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_5x5', 2), ('sep_conv_3x3', 0),
          ('avg_pool_3x3', 3), ('sep_conv_3x3', 1), ('skip_connect', 1), ('skip_connect', 0), ('avg_pool_3x3', 1)],
  normal_concat=[4, 5, 6],
  reduce=[('avg_pool_3x3', 0), ('sep_conv_3x3', 1), ('max_pool_3x3', 0), ('sep_conv_7x7', 2), ('sep_conv_7x7', 0),
          ('avg_pool_3x3', 1), ('max_pool_3x3', 0), ('max_pool_3x3', 1), ('conv_7x1_1x7', 0), ('sep_conv_3x3', 5)],
  reduce_concat=[3, 4, 6])"""
ONE_NODE = (
    "Genotype(normal=[('none', 0), ('skip_connect', 1)], normal_concat=[2], "
    "reduce=[('none', 1), ('skip_connect', 1)], reduce_concat=[2])"
)
CELLS = {
    "amoebanet": parse_tuple_text(AMOEBANET),
    "one-node": parse_tuple_text(ONE_NODE),
    "nasbench201": from_arch("|none~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|"),
}


def chain(nodes: int) -> Genotype:
    pairs = tuple((PUBLISHED_OPERATIONS[node % 10], 1 + node) for node in range(nodes) for _ in range(2))
    cell = CellGenotype(pairs, tuple(range(2, 2 + nodes)))
    return Genotype("darts", (("normal", cell), ("reduce", cell)))


def texts_in_frame(figure: Figure) -> list[tuple[str, Bbox]]:
    """(text, its box in pixels) of all that is written; each must lie within the figure."""
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    texts = [text for axes in figure.axes for text in axes.texts]
    for axes in figure.axes:
        if axes.axison:
            texts += [*axes.get_xticklabels(), *axes.get_yticklabels()]
    found = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    for text, box in found:
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    return found


@pytest.mark.parametrize("name", list(CELLS))
def test_labels_are_whole_and_apart(name: str) -> None:
    genotype = CELLS[name]
    found = texts_in_frame(draw_cells(genotype))
    written = [text for text, _ in found]
    for kind in genotype.kinds:
        for operation, _ in genotype.cell(kind).pairs:
            written.remove(operation_label(operation))
    for (first, one), (second, other) in combinations(found, 2):
        assert not one.overlaps(other), (first, second)


@pytest.mark.parametrize("name", list(CELLS))
def test_boxes_are_apart_and_hold_their_labels(name: str) -> None:
    figure = draw_cells(CELLS[name])
    found = texts_in_frame(figure)
    shapes = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch | Circle)]
    boxes = [patch.get_window_extent() for patch in shapes]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    labels = {operation_label(operation) for kind in CELLS[name].kinds for operation, _ in CELLS[name].cell(kind).pairs}
    for text, box in found:
        if text in labels:
            assert any(outer.x0 < box.x0 and box.x1 < outer.x1 and outer.y0 < box.y0 and box.y1 < outer.y1
                       for outer in boxes), text  # fmt: skip


@pytest.mark.parametrize("name", list(CELLS))
def test_no_line_crosses_a_box(name: str) -> None:
    """Lines touch the boxes they join at their edges only; sampled, in inches."""
    axes = draw_cells(CELLS[name]).axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    lines = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    assert lines
    for line in lines:
        for x, y in Curve(line.get_path().to_polygons(closed_only=False)[0]).interpolated(20).vertices:
            for box in boxes:
                inside = (
                    box.get_x() + 0.01 < x < box.get_x() + box.get_width() - 0.01
                    and box.get_y() < y < box.get_y() + box.get_height()
                )
                assert not inside, (x, y)


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    for run in ("a", "b"):
        save_cells(CELLS["amoebanet"], tmp_path / f"{run}.svg", tmp_path / f"{run}.png")
    for kind in ("svg", "png"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_size_limit() -> None:
    texts_in_frame(draw_cells(chain(12)))
    with pytest.raises(GenotypeError, match=f"{MAX_NODES + 1} nodes"):
        draw_cells(chain(MAX_NODES + 1))


@pytest.mark.parametrize("space", [DARTS, NASBENCH201], ids=lambda space: space.name)
def test_heatmap_shows_every_probability(space: SearchSpace) -> None:
    count = space.num_operations
    alpha = {
        spec.kind: [[float(edge % count == operation) for operation in range(count)] for edge in range(len(spec.edges))]
        for spec in space.cells
    }
    figure = alpha_heatmap(space, alpha)
    texts_in_frame(figure)
    for spec, axes in zip(space.cells, figure.axes):
        assert axes.images[0].get_array().tolist() == alpha[spec.kind]
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            f"{e.source} → {e.target}" for e in spec.edges
        ]
        assert sum(text.get_text() == "1.00" for text in axes.texts) == len(spec.edges)
