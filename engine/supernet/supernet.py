"""The super-net: every operation's weights, and a forward pass that runs the sampled ones only.

Shape suffixes: B batch, C channels, H height, W width, E edges, O operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.primitives import primitives
from ...kernels.reference.batchnorm import NARROW
from ..spaces.space import CellLayer, ResidualLayer, SearchSpace, Skeleton, StemKind, StemSpec, search_skeleton
from .autograd_net import PlainBranch, plain_cell, plain_head, plain_residual, plain_stem
from .branch_table import branches_of, table_rows
from .cell import CellFunction
from .cell_call import Branch, CellCall, Shortcut
from .fused_cell import FusedCall, FusedCellFunction
from .operation import Drop, Operation
from .ops import TABLES, DepthwiseSeparable, Zero, operation_at, plain_norm
from .paths import CellPaths, Paths
from .recompute import RecomputeFunction
from .stem import StemFunction
from .weights import CellWeights, differentiable_views, layout_of


class SuperNet(nn.Module):
    """Weights of all operations in all cells.

    Args:
        space, channels, layers, stem: see `search_skeleton`.
        classes: of the classifier.
        policy: activation policy of each cell (`all`, `bn`, `nodes`, `min`), or `autograd` once for the
            plain path. The stems keep their maps where the first cell's policy is `all` or `bn`.
        layout: memory format of the plain path; the engine is always channels_last.
        operations: what runs under each operation's name; the space's own table by default. An
            `ops.ModuleOperation` makes any nn.Module a candidate.
        seed: of the weights (uniform in +-1/sqrt(fan_in), torch's default for convolutions).
        dtype: of the maps: fp32, fp64, bf16, or fp16 without Triton; weights and statistics of 16-bit maps are fp32.
        partial: operations see the first 1 / partial of an edge's channels, the others pass them by (PC-DARTS); more
            than 1 needs the plain path.
        impl: what computes a cell. `reference` and `native` read the sample on the host and run what it names;
            `triton` reads it on the device, in launches of one shape (see `fused_cell`).

    Raises:
        ConfigError: for operations that `impl="triton"` has no kernel for.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        channels: int,
        layers: int,
        stem: StemKind = "cifar",
        classes: int,
        policy: Sequence[str] = ("min",),
        layout: str = "nhwc",
        operations: Mapping[str, Operation] | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        partial: int = 1,
        impl: Literal["triton", "native", "reference"] = "reference",
    ) -> None:
        super().__init__()
        self.space, self.impl, self.dtype, self.partial = space, impl, dtype, partial
        self.skeleton = search_skeleton(space, channels=channels, layers=layers, stem=stem)
        self.operations = TABLES[space.family] if operations is None else operations
        self.plain = tuple(policy) == ("autograd",)
        self.policies = tuple(policy) * layers if len(policy) == 1 else tuple(policy)
        self.layout = layout
        self._kernels = primitives(impl)
        make = _ParameterMaker(seed, torch.float32 if dtype in NARROW else dtype)
        self.stems = nn.ModuleList(_stem_parameters(make, spec) for spec in self.skeleton.stems)
        self.layers = nn.ModuleList(self._layer_parameters(make, layer) for layer in self.skeleton.layers)
        self.norm = make.norm(self.skeleton.channels_out) if self.skeleton.norm_head else None
        self.head = _head_parameters(make, self.skeleton) if self.skeleton.head_in else None
        self.classifier = nn.Linear(self.skeleton.channels_out, classes, dtype=make.dtype)
        with torch.no_grad():
            self.classifier.weight.copy_(make.uniform(classes, self.skeleton.channels_out))
            self.classifier.bias.zero_()
        self._branches = [self._branches_of(layer) for layer in self.skeleton.layers]
        self._excluded = {spec.kind: space.excluded(spec.kind) for spec in space.cells}
        separable = [one for one in self.operations.values() if isinstance(one, DepthwiseSeparable)]
        self._two_stages = any(one.stages > 1 for one in separable)
        if impl == "triton":
            for layer in self.skeleton.layers:
                if isinstance(layer, CellLayer):
                    rows = table_rows(layer, space.operations, self.operations)
                    self.register_buffer(f"branch_table_{layer.spec.kind}", rows, persistent=False)

    def _layer_parameters(self, make: _ParameterMaker, layer: CellLayer | ResidualLayer) -> nn.Module:
        if isinstance(layer, ResidualLayer):
            c_in, c = layer.channels_in, layer.channels
            return nn.ParameterList(
                [make.uniform(c, c_in, 3, 3), make.uniform(c, c, 3, 3), make.uniform(c, c_in, 1, 1)]
            )
        preprocess = []
        for number, c_in in enumerate(layer.channels_in if layer.spec.preprocess else ()):
            halves = 2 if number == 0 and layer.reduced_before else 1
            preprocess.append([make.uniform(layer.channels // halves, c_in) for _ in range(halves)])
        layout = layout_of(layer, self._names(layer), self.operations, partial=self.partial)
        every = (place for edge in layout.places for places in edge for place in places)
        return CellWeights(layout, [make.uniform(*place.shape).detach() for place in every], preprocess)

    def _branches_of(self, layer: CellLayer | ResidualLayer) -> list[list[Branch]]:
        """Every operation of every edge as a branch of its cell."""
        if isinstance(layer, ResidualLayer):
            return []
        layout = layout_of(layer, self._names(layer), self.operations, partial=self.partial)
        return [
            [
                Branch(
                    layer.first_row + number, column, edge,
                    operation_at(self.operations, name, edge.stride, shortcut=edge.shortcut),
                    layout.places[number][column],
                )
                for column, name in enumerate(self._names(layer))
            ]
            for number, edge in enumerate(layer.spec.edges)
        ]  # fmt: skip

    def _names(self, layer: CellLayer) -> tuple[str, ...]:
        """The operations of each of its edges."""
        return (layer.fixed,) if layer.fixed else self.space.operations

    def forward(self, images_BCHW: Tensor, paths: Paths, drop: Drop | None = None) -> Tensor:
        """Logits [B, classes] of one network.

        Args:
            images_BCHW: normalised images; channels_last costs no copy.
            paths: operations and gates by cell type, of one network of a Sample.
            drop: Dropblock-Identity, for training passes.
        """
        x = self._enter(images_BCHW)
        outputs = []
        stems: Any = self.stems
        layers: Any = self.layers
        for spec, parameters in zip(self.skeleton.stems, stems, strict=True):
            x = self._stem(spec, x, tuple(parameters))
            outputs.append(x)
        before, last = outputs[0], outputs[-1]
        cell = 0
        rows = self._branch_rows(paths) if self.impl == "triton" and not self.plain else {}
        for number, layer in enumerate(self.skeleton.layers):
            if isinstance(layer, ResidualLayer):
                last = self._residual(last, tuple(layers[number]))
                continue
            inputs = (before, last)[-layer.spec.inputs :]
            if layer.fixed:
                last = self._fixed_cell(number, layer, last)
                continue
            kind = layer.spec.kind
            if rows:
                out = self._fused_cell(number, cell, layer, inputs, paths[kind], rows[kind], drop)
            else:
                out = self._cell(number, cell, layer, inputs, paths[kind], drop)
            before, last, cell = last, out, cell + 1
        return self._head(last)

    def _enter(self, images_BCHW: Tensor) -> Tensor:
        images_BCHW = images_BCHW.to(self.dtype)
        if not self.plain:
            return images_BCHW.permute(0, 2, 3, 1).contiguous()
        memory = torch.contiguous_format if self.layout == "nchw" else torch.channels_last
        return images_BCHW.contiguous(memory_format=memory)

    def _stem(self, spec: StemSpec, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        if self.plain:
            return plain_stem(spec, x, parameters)
        return StemFunction.apply(spec, self.policies[0] in ("all", "bn"), x, *parameters)

    def _residual(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        if self.plain:
            return plain_residual(x, *weights)
        stored = [weight.to(x.dtype) for weight in weights]
        return RecomputeFunction.apply(plain_residual, x.permute(0, 3, 1, 2), *stored).permute(0, 2, 3, 1)

    def _head(self, x: Tensor) -> Tensor:
        if self.head is not None:
            weights = list(self.head)
            x_BC = plain_head(x, *weights) if self.plain else RecomputeFunction.apply(
                plain_head, x.permute(0, 3, 1, 2), *weights
            )  # fmt: skip
        elif self.norm is not None:
            x_BCHW = x if self.plain else x.permute(0, 3, 1, 2)
            x_BC = F.relu(plain_norm(x_BCHW, *(weight.to(x.dtype) for weight in self.norm))).mean((2, 3))
        else:
            x_BC = x.mean((2, 3) if self.plain else (1, 2))
        return self.classifier(x_BC.to(self.classifier.weight.dtype))

    def _cell(
        self, number: int, cell: int, layer: CellLayer, inputs: Sequence[Tensor], paths: CellPaths, drop: Drop | None
    ) -> Tensor:
        parameters, weights, preprocess = self._cell_weights(number)
        sampled: list[Branch] = []
        shadows: list[Branch] = []
        shortcuts: list[Shortcut] = []
        for row, every in enumerate(self._branches[number], start=layer.first_row):
            columns, excluded = paths.operations[row], self._excluded[layer.spec.kind][row]
            own = [every[column] for column in sorted(columns) if column not in excluded]
            sampled += own
            if every[0].edge.shortcut:
                left_out = [branch.column for branch in own if isinstance(branch.operation, Zero)]
                shortcuts.append(Shortcut(every[0].edge, row, left_out[0] if left_out else None))
            if paths.shadows:
                others = [branch for branch in every if branch.column not in (*columns, *excluded)]
                shadows += [branch for branch in others if not isinstance(branch.operation, Zero)]
        # Without autograd nothing is saved; a policy that keeps maps would only hold them for longer.
        policy = self.policies[cell] if torch.is_grad_enabled() and not self.plain else "min"
        running = tuple(branch for branch in sampled if not isinstance(branch.operation, Zero))
        gates = None if self.plain else paths.gate_values
        call = CellCall(
            layer, cell, running, tuple(shadows), preprocess, policy, drop, gates, self._kernels, tuple(shortcuts)
        )
        dtype = inputs[0].dtype
        narrow = dtype in NARROW
        if self.plain:
            views = differentiable_views(parameters.layout, parameters.arenas())
            plain: list[PlainBranch] = [
                (b.row, b.column, b.operation, views[b.row - layer.first_row][b.column]) for b in sampled
            ]
            if self.partial == 1:
                return plain_cell(call, plain, paths.scaled_EO.to(dtype), (*inputs, *weights))
            edges_E = None if paths.edges_E is None else paths.edges_E.to(dtype)
            return plain_cell(
                call, plain, paths.gates_EO.to(dtype), (*inputs, *weights), edges_E=edges_E, partial=self.partial
            )
        gates_EO = paths.scaled_EO.to(torch.float32 if narrow else dtype)
        # Under autograd, so that gradients of 16-bit maps come back in the weights' own dtype.
        return CellFunction.apply(call, gates_EO, *inputs, *(weight.to(dtype) for weight in weights))

    def _fixed_cell(self, number: int, layer: CellLayer, x: Tensor) -> Tensor:
        """A layer that is not searched: its one operation with gate 1, kept as the first cell's policy says."""
        parameters, weights, _ = self._cell_weights(number)
        policy = self.policies[0] if torch.is_grad_enabled() and not self.plain else "min"
        branch = self._branches[number][0][0]
        call = CellCall(layer, 0, (branch,), (), (), policy, None, [[1.0]], self._kernels)
        narrow = x.dtype in NARROW
        if self.plain:
            own = differentiable_views(parameters.layout, weights)[0][0]
            return plain_cell(call, [(0, 0, branch.operation, own)], x.new_ones(1, 1), (x, *weights))
        gates_EO = x.new_ones(1, 1, dtype=torch.float32 if narrow else x.dtype)
        return CellFunction.apply(call, gates_EO, x, *(weight.to(x.dtype) for weight in weights))

    def _cell_weights(self, number: int) -> tuple[CellWeights, list[Tensor], tuple[slice, ...]]:
        """A cell's parameters, the same as a list, and where in it each input's preprocessing is."""
        layers: Any = self.layers
        parameters: CellWeights = layers[number]
        weights = parameters.arenas()
        preprocess: list[slice] = []
        for group in parameters.preprocess_groups():
            preprocess.append(slice(len(weights), len(weights) + len(group)))
            weights += group
        return parameters, weights, tuple(preprocess)

    def _branch_rows(self, paths: Paths) -> dict[str, Tensor]:
        """The kernels' branch table of a sample, by the cell types that the network has."""
        kinds = {layer.spec.kind for layer in self.skeleton.layers if isinstance(layer, CellLayer)}
        return {
            kind: branches_of(getattr(self, f"branch_table_{kind}"), paths[kind].indices_EK) for kind in sorted(kinds)
        }

    def _fused_cell(
        self, number: int, cell: int, layer: CellLayer, inputs: Sequence[Tensor], path: CellPaths, rows: Tensor,
        drop: Drop | None,
    ) -> Tensor:  # fmt: skip
        _, weights, preprocess = self._cell_weights(number)
        policy = self.policies[cell] if torch.is_grad_enabled() else "min"
        call = FusedCall(layer, cell, path.indices_EK.shape[1], self._two_stages, preprocess, policy, drop)
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return FusedCellFunction.apply(call, rows, path.scaled_EO.to(wide), *inputs, *weights)

    def touched(self, indices: Mapping[str, Tensor]) -> list[Tensor | None]:
        """For each parameter, in the order of `parameters()`, which rows the sampled operations own.

        Args:
            indices: sampled operations [E, K] by cell type, of all networks of a step.

        Returns:
            Masks of 0 and 1 that broadcast over an arena; None where all of a parameter is in use.
        """
        by_kind: dict[tuple[str, int], list[Tensor]] = {}
        masks: dict[nn.Parameter, Tensor] = {}
        layers: Any = self.layers
        for spec, layer in zip(self.skeleton.layers, layers, strict=True):
            if isinstance(spec, ResidualLayer) or spec.fixed:
                continue
            kind, row = spec.spec.kind, spec.first_row
            key = (kind, row)
            if key not in by_kind:
                own = indices[kind][row : row + len(spec.spec.edges)]
                by_kind[key] = layer.masks(own, self.space.num_operations)
            masks |= dict(zip(layer.arenas(), by_kind[key], strict=True))
        return [masks.get(parameter) for parameter in self.parameters()]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No weight gradients inside: a step on alpha computes none and needs fewer maps."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


class _ParameterMaker:
    """Parameters in a fixed order from one seed, the same numbers in every dtype."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def uniform(self, *shape: int) -> nn.Parameter:
        fan_in = 1
        for side in shape[1:]:
            fan_in *= side
        bound = max(1, fan_in) ** -0.5
        values = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return nn.Parameter(((2 * values - 1) * bound).to(self.dtype))

    def norm(self, channels: int) -> nn.ParameterList:
        return nn.ParameterList(
            [
                nn.Parameter(torch.ones(channels, dtype=self.dtype)),
                nn.Parameter(torch.zeros(channels, dtype=self.dtype)),
            ]
        )


def _head_parameters(make: _ParameterMaker, skeleton: Skeleton) -> nn.ParameterList:
    return nn.ParameterList(
        [make.uniform(skeleton.channels_out, skeleton.head_in, 1, 1), *make.norm(skeleton.channels_out)]
    )


def _stem_parameters(make: _ParameterMaker, spec: StemSpec) -> nn.ParameterList:
    parameters: list[nn.Parameter] = []
    for conv_spec in spec.convs:
        parameters += [make.uniform(conv_spec.channels, conv_spec.channels_in, 3, 3), *make.norm(conv_spec.channels)]
    found = nn.ParameterList(parameters)
    if spec.relu6_last:
        # As everywhere in a chain: the BatchNorms that follow would undo a scale, all but what ReLU6 cuts off.
        for parameter in parameters[1:]:
            parameter.requires_grad_(False)
    return found
