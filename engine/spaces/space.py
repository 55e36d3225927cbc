"""Search spaces and network skeletons as pure data; nothing here imports torch.

A cell is a directed acyclic graph: states 0..inputs-1 are the cell's inputs, the following ones its
intermediate nodes; an edge carries one candidate operation out of the space's list (or, while
searching, K of them). Edges are ordered by target and then by source, as DARTS orders them
(quark0/darts, cnn/model_search.py), so edge e of alpha is edge e here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ConfigError
from .chain import FBNET, FBNET_OPERATIONS, MOBILE, MOBILE_FIXED, MOBILE_OPERATIONS, MOBILE_ZERO, Chain

Rule = Literal["top2", "argmax"]
StemKind = Literal["cifar", "imagenet"]

ZERO = "none"
SKIP = "skip_connect"
# Far beyond what is searched or trained, and small enough to be built at once (ours).
MOST_CHANNELS, MOST_LAYERS = 1 << 16, 1000
# The kind of a chain's one cell.
CHAIN = "chain"

DARTS_OPERATIONS = (
    ZERO,
    "max_pool_3x3",
    "avg_pool_3x3",
    SKIP,
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
# Published cells use these too (NASNet-A, AmoebaNet-A); no search of ours offers them.
PUBLISHED_OPERATIONS = (*DARTS_OPERATIONS, "sep_conv_7x7", "conv_7x1_1x7")
NASBENCH201_OPERATIONS = (ZERO, SKIP, "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


@dataclass(frozen=True, slots=True)
class Edge:
    """A place for operations: from state `source` to state `target`, halving the side if `stride` is 2.

    With `shortcut` the source itself is added to the target too, beside what its operations yield, with no gate
    (the blocks of ProxylessNAS and FBNet).
    """

    source: int
    target: int
    stride: int
    shortcut: bool = False


@dataclass(frozen=True, slots=True)
class CellSpec:
    """One type of cell. All cells of a type share their alpha.

    Attributes:
        kind: name of the type, the key of alpha and of the genotype.
        inputs: number of cells it reads from (2 in DARTS, 1 in NAS-Bench-201).
        nodes: number of intermediate nodes.
        edges: in the order of alpha's rows.
        concat: states joined on the channel axis as output.
        preprocess: whether inputs first pass ReLU-1x1-BN (or a factorized reduction).
        reduction: whether edges from the inputs have stride 2.
    """

    kind: str
    inputs: int
    nodes: int
    edges: tuple[Edge, ...]
    concat: tuple[int, ...]
    preprocess: bool
    reduction: bool

    @property
    def num_states(self) -> int:
        return self.inputs + self.nodes


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Candidate operations, cell types and the rule that turns alpha into a genotype.

    Attributes:
        name: as `--space` takes it.
        family: whose operations and genotypes these are: `darts`, `nasbench201`, `mobile` or `fbnet`.
        operations: the columns of alpha.
        cells, rule: see above. The one cell of a chain is the whole of it, each edge a layer with an alpha of its own.
        candidates: by kind of cell the operations that each edge may have; empty where that is all. Equally many, but
            on layers of a chain without a shortcut.
        chain: widths and stages of a chain, None for cells.
    """

    name: str
    family: str
    operations: tuple[str, ...]
    cells: tuple[CellSpec, ...]
    rule: Rule
    candidates: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = ()
    chain: Chain | None = None

    @property
    def num_operations(self) -> int:
        return len(self.operations)

    def candidates_per_edge(self, *, with_none: bool = True) -> int:
        """The largest K: candidates of the edge that has the most."""
        return max(self._counts(with_none))

    def fewest_candidates(self, *, with_none: bool = True) -> int:
        """The largest K of sub-graphs, of which each has an operation on every edge."""
        return min(self._counts(with_none))

    def _counts(self, with_none: bool) -> set[int]:
        every = [names for spec in self.cells for names in self.names_of(spec.kind)]
        return {len(names) - (ZERO in names and not with_none) for names in every}

    def names_of(self, kind: str) -> tuple[tuple[str, ...], ...]:
        """The candidates of each edge of that kind of cell."""
        return dict(self.candidates).get(kind, (self.operations,) * len(self.cell(kind).edges))

    def excluded(self, kind: str) -> tuple[tuple[int, ...], ...]:
        """For each edge of that kind of cell the columns that it may not have."""
        columns = range(self.num_operations)
        return tuple(tuple(n for n in columns if self.operations[n] not in edge) for edge in self.names_of(kind))

    def cell(self, kind: str) -> CellSpec:
        return next(spec for spec in self.cells if spec.kind == kind)


def full_dag(inputs: int, nodes: int, input_stride: int) -> tuple[Edge, ...]:
    """Every edge from an earlier to a later state; those that leave an input have `input_stride`."""
    return tuple(
        Edge(source, target, input_stride if source < inputs else 1)
        for target in range(inputs, inputs + nodes)
        for source in range(target)
    )


def _darts_cell(kind: str, nodes: int, reduction: bool) -> CellSpec:
    return CellSpec(
        kind=kind,
        inputs=2,
        nodes=nodes,
        edges=full_dag(2, nodes, 2 if reduction else 1),
        concat=tuple(range(2, 2 + nodes)),
        preprocess=True,
        reduction=reduction,
    )


DARTS = SearchSpace(
    name="darts",
    family="darts",
    operations=DARTS_OPERATIONS,
    cells=(_darts_cell("normal", 4, False), _darts_cell("reduce", 4, True)),
    rule="top2",
)
NASBENCH201 = SearchSpace(
    name="nasbench201",
    family="nasbench201",
    operations=NASBENCH201_OPERATIONS,
    cells=(CellSpec("cell", 1, 3, full_dag(1, 3, 1), (3,), preprocess=False, reduction=False),),
    rule="argmax",
)


def _fewer(space: SearchSpace, name: str, *kinds: tuple[tuple[str, ...], ...]) -> SearchSpace:
    """The space with these candidates on the edges of each kind of cell, in the order of its cells."""
    named = tuple((spec.kind, edges) for spec, edges in zip(space.cells, kinds, strict=True))
    return replace(space, name=name, candidates=named)


# Not MSG-DAS: ours, for searches of minutes, in which pooling looks better than it is.
NASBENCH201_CONV_SKIP = _fewer(NASBENCH201, "nasbench201-conv-skip", (NASBENCH201_OPERATIONS[1:4],) * 6)

_MAX, _AVG, _SEP3, _DIL3, _DIL5 = "max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5"
_POOLS = (_MAX, _AVG)
# Of Zela et al., Understanding and Robustifying Differentiable Architecture Search (ICLR 2020), where DARTS falls into
# skip-connects (automl/RobustDARTS, src/spaces.py). S1's pairs are what two DARTS searches left. S4, noise against
# sep_conv_3x3, has no skip-connect and is left out.
S1 = _fewer(
    DARTS,
    "s1",
    (
        (SKIP, _DIL3), (SKIP, _DIL5), (SKIP, _DIL5), (SKIP, _SEP3), (SKIP, _DIL3), (_MAX, SKIP), (SKIP, _SEP3),
        (SKIP, _SEP3), (SKIP, _DIL3), (SKIP, _SEP3), (_MAX, SKIP), (SKIP, _DIL3), (_DIL3, _DIL5), (_DIL3, _DIL5),
    ),
    (
        _POOLS, (_MAX, _DIL3), _POOLS, _POOLS, (SKIP, _DIL5), _POOLS, (_MAX, _SEP3),
        (SKIP, _DIL3), (SKIP, _DIL5), _POOLS, _POOLS, (SKIP, _DIL5), (SKIP, _DIL5), (SKIP, _DIL5),
    ),
)  # fmt: skip
S2 = _fewer(DARTS, "s2", ((SKIP, _SEP3),) * 14, ((SKIP, _SEP3),) * 14)
S3 = _fewer(DARTS, "s3", ((ZERO, SKIP, _SEP3),) * 14, ((ZERO, SKIP, _SEP3),) * 14)


def _chain_space(name: str, family: str, chain: Chain, operations: tuple[str, ...]) -> SearchSpace:
    edges = tuple(Edge(n, n + 1, layer.stride, layer.shortcut) for n, layer in enumerate(chain.layers))
    spec = CellSpec(CHAIN, 1, len(edges), edges, (len(edges),), preprocess=False, reduction=False)
    everywhere = tuple(name for name in operations if name != MOBILE_ZERO)
    own = tuple(operations if edge.shortcut else everywhere for edge in edges)
    candidates = ((CHAIN, own),) if MOBILE_ZERO in operations else ()
    return SearchSpace(name, family, operations, (spec,), "argmax", candidates, chain)


IMAGENET_MOBILE = _chain_space("imagenet-mobile", "mobile", MOBILE, MOBILE_OPERATIONS)
IMAGENET_FBNET = _chain_space("imagenet-fbnet", "fbnet", FBNET, FBNET_OPERATIONS)
SPACES = {
    space.name: space
    for space in (DARTS, NASBENCH201, NASBENCH201_CONV_SKIP, S1, S2, S3, IMAGENET_MOBILE, IMAGENET_FBNET)
}
# Of each family the space with all of its operations on every edge.
FAMILIES = {space.family: space for space in (DARTS, NASBENCH201, IMAGENET_MOBILE, IMAGENET_FBNET)}


def space_named(name: str) -> SearchSpace:
    """The space of that name; ConfigError lists the names there are."""
    if name not in SPACES:
        raise ConfigError("unknown search space", got=repr(name), allowed=", ".join(SPACES), next="--space darts")
    return SPACES[name]


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """A 3x3 convolution followed by BatchNorm."""

    channels_in: int
    channels: int
    stride: int


@dataclass(frozen=True, slots=True)
class StemSpec:
    """Convolutions joined by ReLU; `relu_first` puts one before the first too (DARTS' second ImageNet stem).

    `relu6_last` puts a ReLU6 behind the last one (the mobile chains).
    """

    convs: tuple[ConvSpec, ...]
    relu_first: bool = False
    relu6_last: bool = False


@dataclass(frozen=True, slots=True)
class CellLayer:
    """A searched cell in its place: channels of its inputs and of its nodes.

    `reduced_before` says that input 0 has twice the side of input 1, so preprocessing reduces it. The rows of the
    kind's alpha that are the layer's begin at `first_row`. A layer that is not searched has `fixed`, its operation.
    """

    spec: CellSpec
    channels_in: tuple[int, ...]
    channels: int
    reduced_before: bool
    first_row: int = 0
    fixed: str = ""

    @property
    def channels_out(self) -> int:
        return self.channels * len(self.spec.concat)


@dataclass(frozen=True, slots=True)
class ResidualLayer:
    """NAS-Bench-201's fixed reduction: two ReLU-3x3-BN, the first of stride 2, beside 2x2 mean and 1x1."""

    channels_in: int
    channels: int


Layer = CellLayer | ResidualLayer


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Everything around and between the cells.

    Attributes:
        stems: applied one after the other; with two, the first one's output is the first cell's input 0.
        layers: cells and fixed reductions in order.
        channels_out: channels that reach the classifier.
        norm_head: BatchNorm and ReLU before global pooling (NAS-Bench-201).
        head_in: channels of the last layer where a 1x1 convolution to `channels_out`, BatchNorm and ReLU6 come before
            global pooling (the mobile chains), else 0.
        stride: how often the image's side is divided; it must divide the side.
    """

    stems: tuple[StemSpec, ...]
    layers: tuple[Layer, ...]
    channels_out: int
    norm_head: bool
    stride: int
    head_in: int = 0


def _darts_stems(stem: StemKind, channels: int) -> tuple[StemSpec, ...]:
    if stem == "cifar":
        return (StemSpec((ConvSpec(3, channels, 1),)),)
    half = channels // 2
    return (
        StemSpec((ConvSpec(3, half, 2), ConvSpec(half, channels, 2))),
        StemSpec((ConvSpec(channels, channels, 2),), relu_first=True),
    )


def _darts_skeleton(
    normal: CellSpec, reduce: CellSpec, channels: int, layers: int, stem: StemKind, stem_channels: int
) -> Skeleton:
    before, last, reduced_before = stem_channels, stem_channels, stem == "imagenet"
    cells: list[Layer] = []
    for index in range(layers):
        spec = reduce if index in (layers // 3, 2 * layers // 3) else normal
        channels *= 2 if spec.reduction else 1
        cell = CellLayer(spec, (before, last), channels, reduced_before)
        cells.append(cell)
        before, last, reduced_before = last, cell.channels_out, spec.reduction
    reductions = sum(isinstance(cell, CellLayer) and cell.spec.reduction for cell in cells)
    stride = (8 if stem == "imagenet" else 1) * 2**reductions
    return Skeleton(_darts_stems(stem, stem_channels), tuple(cells), last, norm_head=False, stride=stride)


def _nasbench201_skeleton(spec: CellSpec, channels: int, layers: int) -> Skeleton:
    built: list[Layer] = []
    for stage in range(3):
        if stage:
            built.append(ResidualLayer(channels, 2 * channels))
            channels *= 2
        built += [CellLayer(spec, (channels,), channels, reduced_before=False)] * (layers // 3)
    stem_channels = channels // 4
    return Skeleton((StemSpec((ConvSpec(3, stem_channels, 1),)),), tuple(built), channels, norm_head=True, stride=4)


def _chain_skeleton(chain: Chain, channels: int, stem: StemKind) -> Skeleton:
    first = chain.width(chain.first, channels)
    conv = ConvSpec(3, first, 2 if stem == "imagenet" else 1)
    built: list[Layer] = []
    before = first
    if chain.fixed:
        spec = CellSpec(MOBILE_FIXED, 1, 1, (Edge(0, 1, 1),), (1,), preprocess=False, reduction=False)
        before = chain.width(chain.fixed, channels)
        built.append(CellLayer(spec, (first,), before, reduced_before=False, fixed=MOBILE_FIXED))
    stride = conv.stride
    for row, layer in enumerate(chain.layers):
        edge = Edge(0, 1, layer.stride, layer.shortcut)
        spec = CellSpec(CHAIN, 1, 1, (edge,), (1,), preprocess=False, reduction=layer.stride == 2)
        width = chain.width(chain.stages[layer.stage][0], channels)
        built.append(CellLayer(spec, (before,), width, reduced_before=False, first_row=row))
        before, stride = width, stride * layer.stride
    stems = (StemSpec((conv,), relu6_last=True),)
    return Skeleton(stems, tuple(built), chain.head_width(channels), norm_head=False, stride=stride, head_in=before)


def search_skeleton(space: SearchSpace, *, channels: int, layers: int, stem: StemKind) -> Skeleton:
    """The network that is searched in.

    Args:
        channels: C, channels of a node in the first cell (even); in a chain those of the first convolution, all
            other widths in proportion (see `Chain.width`).
        layers: number of searched cells; NAS-Bench-201 spreads them over three stages, a chain has its own.
        stem: `cifar` keeps the image's side, `imagenet` divides it by 8, a chain's by 2. The stem has 3C channels in
            the DARTS space (stem_multiplier in quark0/darts and in PC-DARTS' ImageNet search).

    Raises:
        ConfigError: for a size that the space cannot have.
    """
    if channels % 2 or not 2 <= channels <= MOST_CHANNELS:
        allowed = f"2, 4, 6, ... {MOST_CHANNELS}"
        raise ConfigError("channels must be even and not too many", got=channels, allowed=allowed, next="--channels 16")
    if not 1 <= layers <= MOST_LAYERS:
        raise ConfigError("layers is out of range", got=layers, allowed=f"1 to {MOST_LAYERS}", next="--layers 8")
    if space.chain is not None:
        if layers != len(space.chain.layers):
            raise ConfigError(
                f"space {space.name} is a chain of its own layers", got=f"layers {layers}",
                allowed=f"{len(space.chain.layers)}", next=f"--layers {len(space.chain.layers)}",
            )  # fmt: skip
        return _chain_skeleton(space.chain, channels, stem)
    if space.rule == "argmax":
        if layers % 3:
            raise ConfigError(
                f"layers of space {space.name} fill three equal stages", got=layers, allowed="a multiple of 3",
                next=f"--layers {max(3, layers // 3 * 3)}",
            )  # fmt: skip
        if stem != "cifar":
            raise ConfigError(f"space {space.name} has one stem", got=stem, allowed="cifar", next="--stem cifar")
        return _nasbench201_skeleton(space.cells[0], channels, layers)
    normal, reduce = space.cells
    return _darts_skeleton(normal, reduce, channels, layers, stem, stem_channels=3 * channels)


def derived_skeleton(normal: CellSpec, reduce: CellSpec, *, channels: int, layers: int, stem: StemKind) -> Skeleton:
    """DARTS' network for a derived cell: 3C stem channels on CIFAR, C on ImageNet (quark0/darts, cnn/model.py)."""
    stem_channels = 3 * channels if stem == "cifar" else channels
    return _darts_skeleton(normal, reduce, channels, layers, stem, stem_channels)
