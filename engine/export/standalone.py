"""A derived network as Python source that needs torch alone, and its entry for timm.

The source holds the definitions of this package's own modules, word for word, and a template around them
(assets/standalone.txt): there is no second definition that could differ.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..network import chain as network_chain
from ..network import network
from ..network import ops as network_ops
from ..spaces import chain, space
from ..spaces.counting import names_of, network_skeleton
from ..spaces.space import CellLayer, CellSpec, ResidualLayer
from .exported import Exported

ASSETS = Path(__file__).parent.parent / "assets"
PARTS: tuple[Any, ...] = (
    space.Edge, space.CellSpec, space.ConvSpec, space.StemSpec, space.CellLayer, space.ResidualLayer,
    network_ops.conv, network_ops.ReluConvNorm, network_ops.FactorizedReduce, network_ops.SeparableStage,
    network_ops.Separable, network_ops.CrossConv, network_ops.Pool, network_ops.Zero, network_ops.ResidualReduce,
    network_ops.operation, network_chain.InvertedResidual, network_chain.chain_operation, network_chain.chain_head,
    network.Stem, network.Cell, network._operation,
)  # fmt: skip
# What the definitions name; see space.py and chain.py.
CONSTANTS = {
    "SKIP": space.SKIP, "ZERO": space.ZERO, "CHAIN": space.CHAIN, "MOBILE_FIXED": chain.MOBILE_FIXED,
    "CHAIN_SKIPS": chain.CHAIN_SKIPS, "BLOCKS": chain.BLOCKS,
}  # fmt: skip
# The one thing left out of them: the C++ kernels of this package.
NATIVE = """\
        if self.training and takes(x_BCHW, self.depthwise.weight):
            return separable_stage(x_BCHW, self.depthwise, self.pointwise, self.norm)
"""


def standalone_source(subject: Exported) -> str:
    """Python source with `Network`, whose state_dict has the names of `network.Network`'s, and `load`."""
    sources = "\n\n".join(inspect.getsource(part) for part in PARTS)
    assert sources.count(NATIVE) == 1
    constants = "\n".join(f"{name} = {_lines(value)}" for name, value in CONSTANTS.items())
    parts = f"\n{inspect.getsource(chain.Block)}\n\n{constants}\n\n\n{sources.replace(NATIVE, '')}"
    return _filled("standalone.txt", subject, {"PARTS": parts, "PLAN": _plan(subject)})


def timm_source(subject: Exported) -> str:
    """Python source that registers the network of `standalone_source` with timm, beside which it must lie."""
    return _filled("timm_entry.txt", subject, {})


def _filled(template: str, subject: Exported, parts: dict[str, str]) -> str:
    text = (ASSETS / template).read_text(encoding="utf-8")
    values = {
        "NAME": subject.name, "SIDE": str(subject.image), "CLASSES": str(len(subject.classes)),
        "VERSION": version("msgdas"), **parts,
    }  # fmt: skip
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _plan(subject: Exported) -> str:
    """The skeleton as literals; cells of one kind share their specification."""
    skeleton = network_skeleton(subject.genotype, channels=subject.channels, layers=subject.layers, stem=subject.stem)
    specs: dict[CellSpec, str] = {}
    rows = []
    for layer in skeleton.layers:
        if isinstance(layer, ResidualLayer):
            rows.append(f"    ({layer!r}, []),")
            continue
        name = specs.setdefault(layer.spec, f"SPEC_{len(specs)}")
        rows.append(f"    ({_with_spec(layer, name)}, {names_of(subject.genotype, layer)!r}),")
    lines = [
        f"GENOTYPE = {subject.genotype_json!r}",
        f"SIDE, STRIDE = {subject.image}, {skeleton.stride}",
        f"MEAN, STD = {subject.mean!r}, {subject.std!r}",
        f"CLASSES = {subject.classes!r}",
        f"CHANNELS_OUT, HEAD_IN, NORM_HEAD = {skeleton.channels_out}, {skeleton.head_in}, {skeleton.norm_head}",
        f"STEMS = {skeleton.stems!r}",
        *(f"{name} = {spec!r}" for spec, name in specs.items()),
        "# Each layer in its place, with the operations of its edges.",
        "LAYERS: tuple[tuple[CellLayer | ResidualLayer, list[str]], ...] = (", *rows, ")",
    ]  # fmt: skip
    return "\n".join(lines)


def _with_spec(layer: CellLayer, name: str) -> str:
    text = repr(layer)
    found = repr(layer.spec)
    assert text.count(found) == 1
    return text.replace(found, name)


def _lines(value: object) -> str:
    if not isinstance(value, dict):
        return repr(value)
    return "{\n" + "".join(f"    {key!r}: {one!r},\n" for key, one in value.items()) + "}"
