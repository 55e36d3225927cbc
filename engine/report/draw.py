"""Pictures of cells and of alpha, as matplotlib figures without pyplot.

A node has a row of its own, and its operations stand in front of it as boxes. A line bends only in the gap
behind the column where it starts and then runs along its box's row, so no line crosses a box and no label
another.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

from ..errors import GenotypeError
from ..spaces.chain import CHAIN_SKIPS, ChainLayer
from ..spaces.genotype import CHAINS, Genotype
from ..spaces.space import CHAIN, FAMILIES, NASBENCH201, ZERO, CellSpec, SearchSpace

# Lengths in inches; they are the figure's data units.
BOX_WIDTH, BOX_HEIGHT, BOX_PITCH = 1.24, 0.28, 0.38
ROW_GAP, COLUMN_GAP, FAN_IN = 0.2, 0.8, 0.42
NODE_RADIUS, STATE_WIDTH, STATE_HEIGHT, STATE_PITCH = 0.17, 0.72, 0.44, 0.52
MARGIN, TITLE_HEIGHT, CELL_GAP = 0.3, 0.62, 0.3
STAGE_WIDTH, STAGE_PITCH, LAYER_GAP = 1.6, 0.75, 0.4
PNG_DPI, MAX_PNG_SIDE_PX = 160, 30_000
MAX_NODES = 64

INK, FAINT_INK, PAPER = "#1f2733", "#6b7685", "#ffffff"
# (line, fill) by family of operations, told apart in gray too.
SEPARABLE, DILATED, CONVOLUTION = ("#2b6cb0", "#dcebfa"), ("#7b3fa0", "#eee0f6"), ("#1d4e89", "#cfe0f3")
POOL, SKIP_CONNECT, NOTHING = ("#c05621", "#fde6d3"), ("#2f855a", "#d9f2e3"), ("#9aa3ae", "#f1f3f5")
LOOKS = (
    ("mbconv3", SEPARABLE),
    ("mbconv6", DILATED),
    ("k3", SEPARABLE),
    ("k5", DILATED),
    ("zero", SKIP_CONNECT),
    ("sep_conv", SEPARABLE),
    ("dil_conv", DILATED),
    ("nor_conv", CONVOLUTION),
    ("conv", CONVOLUTION),
    ("max_pool", POOL),
    ("avg_pool", POOL),
    ("skip", SKIP_CONNECT),
)
DETERMINISTIC: dict[Any, Any] = {
    "svg.hashsalt": "msgdas",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
}


def operation_label(operation: str) -> str:
    """`sep_conv_3x3` as it is read: sep conv 3×3."""
    words = operation.split("_")
    words = ["conv" if word == "nor" else word for word in words if not (word == "conv" and words[0] == "nor")]
    return " ".join(word.replace("x", "×") if word[:1].isdigit() else word for word in words)


def _colours(operation: str) -> tuple[str, str]:
    return next((pair for prefix, pair in LOOKS if operation.startswith(prefix)), NOTHING)


@dataclass(slots=True)
class _Layout:
    """Where everything of one cell stands, in inches from the cell's upper left corner, y downwards."""

    exits: dict[int, tuple[float, float]] = field(default_factory=dict)
    nodes: dict[int, tuple[float, float]] = field(default_factory=dict)
    boxes: list[tuple[float, float, int, int]] = field(default_factory=list)
    output: tuple[float, float] = (0.0, 0.0)
    width: float = 0.0
    height: float = 0.0


def _depths(spec: CellSpec) -> dict[int, int]:
    """Column of each state: 0 for inputs, else one behind its last source."""
    depths = dict.fromkeys(range(spec.inputs), 0)
    for state in range(spec.inputs, spec.num_states):
        depths[state] = 1 + max(depths[edge.source] for edge in spec.edges if edge.target == state)
    return depths


def _lay_out(spec: CellSpec) -> _Layout:
    layout, depths = _Layout(), _depths(spec)
    pitch = COLUMN_GAP + BOX_WIDTH + FAN_IN + 2 * NODE_RADIUS
    rows_height = BOX_PITCH * len(spec.edges) + ROW_GAP * (spec.nodes - 1)
    height = max(rows_height, STATE_PITCH * (spec.inputs + 1))
    y = TITLE_HEIGHT + (height - rows_height) / 2
    for state in range(spec.inputs, spec.num_states):
        left = STATE_WIDTH + (depths[state] - 1) * pitch + COLUMN_GAP
        incoming = [edge for edge in spec.edges if edge.target == state]
        layout.boxes += [
            (left, y + BOX_PITCH * (0.5 + index), edge.source, state) for index, edge in enumerate(incoming)
        ]
        x, middle = left + BOX_WIDTH + FAN_IN + NODE_RADIUS, y + BOX_PITCH * len(incoming) / 2
        layout.nodes[state] = (x, middle)
        layout.exits[state] = (x + NODE_RADIUS, middle)
        y += BOX_PITCH * len(incoming) + ROW_GAP
    for state in range(spec.inputs):
        layout.exits[state] = (STATE_WIDTH, TITLE_HEIGHT + height * (state + 1) / (spec.inputs + 1))
    right = STATE_WIDTH + max(depths.values()) * pitch + COLUMN_GAP
    layout.output = (right, sum(layout.nodes[state][1] for state in spec.concat) / len(spec.concat))
    layout.width, layout.height = right + STATE_WIDTH, TITLE_HEIGHT + height
    return layout


def draw_cells(genotype: Genotype) -> Figure:
    """All cells of a genotype, one below the other: inputs left, nodes with their operations, output right.

    Nodes carry the number of their state, the one that the genotype's pairs name as input.

    Raises:
        GenotypeError: for a cell of more than MAX_NODES nodes, which no page would show.
    """
    if genotype.space in CHAINS:
        return draw_chain(genotype)
    specs = [genotype.spec(kind) for kind in genotype.kinds]
    for spec in specs:
        if spec.nodes > MAX_NODES:
            raise GenotypeError(
                f"cell {spec.kind} is too large to draw",
                got=f"{spec.nodes} nodes",
                allowed=f"{MAX_NODES} or fewer",
                next="msgdas show FILE with a smaller cell",
            )
    layouts = [_lay_out(spec) for spec in specs]
    width = max(layout.width for layout in layouts) + 2 * MARGIN
    height = sum(layout.height for layout in layouts) + CELL_GAP * (len(layouts) - 1) + 2 * MARGIN
    with matplotlib.rc_context(DETERMINISTIC):
        figure, axes = _sheet(width, height)
        top = MARGIN
        for spec, layout in zip(specs, layouts, strict=True):
            _draw_cell(axes, genotype, spec, layout, top)
            top += layout.height + CELL_GAP
    return figure


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """Empty paper, its unit an inch, its origin the upper left corner."""
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return figure, axes


def draw_chain(genotype: Genotype) -> Figure:
    """A chain as it runs: a row per stage, a box per layer, an arc over a box for its shortcut."""
    chain = FAMILIES[genotype.space].chain
    assert chain is not None
    pitch = BOX_WIDTH + LAYER_GAP
    longest = max(count for _, count, _ in chain.stages)
    width = 2 * MARGIN + STAGE_WIDTH + longest * pitch
    height = 2 * MARGIN + TITLE_HEIGHT + STAGE_PITCH * len(chain.stages)
    with matplotlib.rc_context(DETERMINISTIC):
        figure, axes = _sheet(width, height)
        title: dict[str, Any] = {"color": INK, "fontsize": 13, "fontweight": "bold", "va": "center"}
        axes.text(MARGIN, MARGIN + 0.1, f"{genotype.space} chain, {len(genotype.layers)} layers", **title)
        note: dict[str, Any] = {"color": FAINT_INK, "fontsize": 8.5, "va": "center"}
        axes.text(MARGIN, MARGIN + 0.34, "left to right, then down; an arc is a shortcut", **note)
        places = iter(zip(chain.layers, genotype.layers, strict=True))
        for stage, (channels, count, stride) in enumerate(chain.stages):
            y = MARGIN + TITLE_HEIGHT + STAGE_PITCH * (stage + 0.6)
            axes.text(MARGIN, y, f"{channels} channels" + (", stride 2" if stride == 2 else ""), **note)
            for number in range(count):
                layer, name = next(places)
                left = MARGIN + STAGE_WIDTH + number * pitch
                _draw_layer(axes, layer, name, (left, y), joined=number > 0)
    return figure


def _draw_layer(axes: Axes, layer: ChainLayer, name: str, left: tuple[float, float], *, joined: bool) -> None:
    x, y = left
    left_out = layer.shortcut and name in CHAIN_SKIPS
    line, _ = _colours(name)
    if joined:
        _draw_curve(axes, (x - LAYER_GAP, y), (x, y), FAINT_INK, LAYER_GAP)
    if layer.shortcut:
        top = y - BOX_HEIGHT * (0.5 if left_out else 1.4)
        before, after = x - LAYER_GAP / 2, x + BOX_WIDTH + LAYER_GAP / 2
        points = [(before, y), (before, top), (after, top), (after, y)]
        codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
        axes.add_patch(PathPatch(Curve(points, codes), fill=False, edgecolor=SKIP_CONNECT[0], linewidth=1.3))
    if left_out:
        _write(axes, (x + BOX_WIDTH / 2, y + 0.08), "left out", color=line, fontsize=8.5)
    else:
        _draw_operation(axes, name, left)


def _draw_cell(axes: Axes, genotype: Genotype, spec: CellSpec, layout: _Layout, top: float) -> None:
    def place(point: tuple[float, float]) -> tuple[float, float]:
        return MARGIN + point[0], top + point[1]

    _draw_title(axes, genotype, spec, place((0, 0)))
    operations = [operation for operation, _ in genotype.cell(spec.kind).pairs]
    for operation, (x, y, source, state) in zip(operations, layout.boxes, strict=True):
        line, _ = _colours(operation)
        style = "--" if operation == ZERO else "-"
        _draw_curve(axes, place(layout.exits[source]), place((x, y)), line, COLUMN_GAP, style)
        node_x, node_y = layout.nodes[state]
        _draw_curve(axes, place((x + BOX_WIDTH, y)), place((node_x - NODE_RADIUS, node_y)), line, FAN_IN, style)
        _draw_operation(axes, operation, place((x, y)))
    for state in spec.concat:
        _draw_output_line(axes, place(layout.exits[state]), place(layout.output))
    for state, (x, y) in layout.nodes.items():
        centre = place((x, y))
        axes.add_patch(Circle(centre, NODE_RADIUS, facecolor=INK, edgecolor=INK, zorder=4))
        _write(axes, centre, str(state), color=PAPER, fontsize=9.5, fontweight="bold")
    names = ["$c_{k-1}$"] if spec.inputs == 1 else ["$c_{k-2}$", "$c_{k-1}$"]
    for state, name in enumerate(names):
        right, y = layout.exits[state]
        _draw_state(axes, place((right - STATE_WIDTH, y)), f"{name}", f"input {state}")
    _draw_state(axes, place(layout.output), "$c_k$", "output")


def _draw_title(axes: Axes, genotype: Genotype, spec: CellSpec, corner: tuple[float, float]) -> None:
    x, y = corner
    title = "cell" if spec.kind == "cell" else f"{spec.kind} cell"
    if len(spec.concat) == 1:
        note = f"output: node {spec.concat[0]}"
    else:
        # A longer list would run out of the narrowest picture.
        states = ", ".join(map(str, spec.concat)) if len(spec.concat) <= 8 else f"({len(spec.concat)} of them)"
        note = f"output: nodes {states} joined on the channel axis"
    if spec.reduction:
        note += "; operations on inputs have stride 2"
    if genotype.space == NASBENCH201.name:
        note = f"NAS-Bench-201, {note}"
    axes.text(x, y + 0.1, title, ha="left", va="center", color=INK, fontsize=13, fontweight="bold")
    axes.text(x, y + 0.34, note, ha="left", va="center", color=FAINT_INK, fontsize=8.5)


def _draw_operation(axes: Axes, operation: str, left: tuple[float, float]) -> None:
    line, fill = _colours(operation)
    x, y = left
    style = "round,pad=0,rounding_size=0.09"
    box = FancyBboxPatch((x, y - BOX_HEIGHT / 2), BOX_WIDTH, BOX_HEIGHT, boxstyle=style, facecolor=fill)
    box.set(edgecolor=line, linewidth=1.0, zorder=3)
    axes.add_patch(box)
    _write(axes, (x + BOX_WIDTH / 2, y), operation_label(operation), color=INK, fontsize=8.5)


def _draw_state(axes: Axes, left: tuple[float, float], name: str, note: str) -> None:
    x, y = left
    style = "round,pad=0,rounding_size=0.06"
    box = FancyBboxPatch((x, y - STATE_HEIGHT / 2), STATE_WIDTH, STATE_HEIGHT, boxstyle=style, facecolor="#eef1f5")
    box.set(edgecolor=INK, linewidth=1.0, zorder=3)
    axes.add_patch(box)
    _write(axes, (x + STATE_WIDTH / 2, y - 0.075), name, color=INK, fontsize=11)
    _write(axes, (x + STATE_WIDTH / 2, y + 0.135), note, color=FAINT_INK, fontsize=6.5)


def _write(axes: Axes, centre: tuple[float, float], text: str, **style: Any) -> None:
    axes.text(*centre, text, ha="center", va="center_baseline", zorder=5, **style)


def _draw_curve(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    bend: float,
    style: str = "-",
) -> None:
    """An S over the first `bend` inches behind `start`, then straight to `end`."""
    (x0, y0), (x1, y1) = start, end
    middle = x0 + bend / 2
    points = [(x0, y0), (middle, y0), (middle, y1), (x0 + bend, y1), (x1, y1)]
    codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4, Curve.LINETO]
    axes.add_patch(PathPatch(Curve(points, codes), fill=False, edgecolor=colour, linewidth=1.3, linestyle=style))


def _draw_output_line(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Straight along the node's row, then an S over the gap before `end`."""
    (x0, y0), (x1, y1) = start, end
    bend = x1 - COLUMN_GAP
    middle = x1 - COLUMN_GAP / 2
    points = [(x0, y0), (bend, y0), (middle, y0), (middle, y1), (x1, y1)]
    codes = [Curve.MOVETO, Curve.LINETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    axes.add_patch(PathPatch(Curve(points, codes), fill=False, edgecolor=FAINT_INK, linewidth=1.1))


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as `svg` or `png`; equal figures give equal bytes."""
    dpi = min(PNG_DPI, MAX_PNG_SIDE_PX / max(figure.get_size_inches()))
    buffer = io.BytesIO()
    with matplotlib.rc_context(DETERMINISTIC):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def save_cells(genotype: Genotype, svg_path: Path, png_path: Path) -> None:
    """Write the picture of `draw_cells` twice. Raises OSError where one cannot be written."""
    figure = draw_cells(genotype)
    svg_path.write_bytes(figure_bytes(figure, "svg"))
    png_path.write_bytes(figure_bytes(figure, "png"))


def alpha_heatmap(space: SearchSpace, alpha: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Probabilities of every operation (columns) on every edge (rows), one table per kind of cell.

    Args:
        space: whose edges and operations are meant.
        alpha: probabilities per kind of cell, [edges][operations], in 0..1.
    """
    rows = max(len(spec.edges) for spec in space.cells)
    columns = space.num_operations
    table_width, table_height = 0.52 * columns, 0.3 * rows
    left, gap, top, bottom, right = 0.75, 0.75, 0.5, 1.05, 0.95
    count = len(space.cells)
    width = left + count * table_width + (count - 1) * gap + right
    height = top + table_height + bottom
    with matplotlib.rc_context(DETERMINISTIC):
        figure = Figure(figsize=(width, height), facecolor=PAPER)
        FigureCanvasAgg(figure)
        for index, spec in enumerate(space.cells):
            x = left + index * (table_width + gap)
            axes = figure.add_axes((x / width, bottom / height, table_width / width, table_height / height))
            image = _draw_table(axes, space, spec, alpha[spec.kind])
        bar = figure.add_axes(((width - right + 0.2) / width, bottom / height, 0.14 / width, table_height / height))
        figure.colorbar(image, cax=bar).set_label("probability", fontsize=8, color=FAINT_INK)
        bar.tick_params(labelsize=7, colors=FAINT_INK)
    return figure


def _draw_table(axes: Axes, space: SearchSpace, spec: CellSpec, rows: Sequence[Sequence[float]]) -> AxesImage:
    image = axes.imshow(rows, cmap="YlGnBu", vmin=0.0, vmax=1.0, aspect="auto")
    for edge, row in enumerate(rows):
        for operation, value in enumerate(row):
            colour = PAPER if value > 0.55 else INK
            axes.text(operation, edge, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    labels = [f"{edge.source} → {edge.target}" for edge in spec.edges]
    if spec.kind == CHAIN:
        labels = [f"layer {edge.target}" for edge in spec.edges]
    axes.set_yticks(range(len(labels)), labels, fontsize=7.5, color=INK)
    names = [operation_label(operation) for operation in space.operations]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=7.5)
    for before, after in zip(range(len(rows)), spec.edges[1:]):
        if spec.edges[before].target != after.target:
            axes.axhline(before + 0.5, color=PAPER, linewidth=2.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title = spec.kind if spec.kind in ("cell", CHAIN) else f"{spec.kind} cell"
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    return image
