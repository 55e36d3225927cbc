"""A search step on meta tensors: shapes and lifetimes are those of the real step, values are nobody's.

Meta rather than fake tensors: the same bookkeeping at a tenth of the time. What would look at a value is told one;
what has no meta kernel is described here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.primitives import Reference
from ...kernels.reference.batchnorm import Stats
from ...kernels.reference.separable import Separable
from ..learning.draws import Part
from ..learning.optimizer import SampledSGD
from ..learning.sampler import Sampler
from ..learning.steps import Learner
from ..settings.config import SearchConfig
from ..spaces.space import SearchSpace
from ..supernet.paths import Paths, Sample
from ..supernet.supernet import SuperNet

META = torch.device("meta")
# Operations of each edge by cell type, for each network of a sample.
Choice = Sequence[Mapping[str, tuple[tuple[int, ...], ...]]]

_aten = torch.ops.aten


class Shapes:
    """Runs operators on meta tensors for a `Recorder`; whoever reads one on the host gets ones.

    What an operator makes is made anew from its last call of the same signature, and what it writes to is handed
    back: torch's own rules of shapes take ten times as long.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Callable[[], Any]] = {}
        self._written: dict[Any, int | str | None] = {}

    def __call__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], key: Hashable) -> Any:
        made = self._made.get(key)
        if made is not None:
            return made()
        if func not in self._written:
            self._written[func] = _written(func)
        written = self._written[func]
        if written is not None:
            return kwargs[written] if isinstance(written, str) else args[written]
        if func is _aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.ones(args[0].shape, dtype=args[0].dtype)
        if func is _aten._local_scalar_dense.default and args[0].is_meta:
            return 1
        result = self._run(func, args, kwargs)
        maker = _maker(func, args, result)
        if maker is not None:
            self._made[key] = maker
        return result

    def _run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is _aten.batch_norm_update_stats.default:
            channels = args[0].shape[1]
            return args[0].new_empty(channels), args[0].new_empty(channels)
        if func is _aten._dirichlet_grad.default:
            return torch.empty_like(args[0])
        result = func(*args, **kwargs)
        if func is _aten.convolution.default:
            return _as_computed(result, args[0], args[1])
        if func is _aten.convolution_backward.default:
            return tuple(
                None if grad is None else _as_computed(grad, args[1], args[2]) if number == 0 else grad
                for number, grad in enumerate(result)
            )
        return result


def _written(func: Any) -> int | str | None:
    """Place or name of the argument that an operator writes to and returns as it is; None for all other operators."""
    schema = func._schema
    found = [n for n, arg in enumerate(schema.arguments) if arg.alias_info is not None and arg.alias_info.is_write]
    if len(found) != 1 or len(schema.returns) != 1 or torch.Tag.inplace_view in func.tags or "resize" in schema.name:
        return None
    returned, argument = schema.returns[0].alias_info, schema.arguments[found[0]]
    if returned is None or returned.before_set != argument.alias_info.before_set:
        return None
    return argument.name if argument.kwarg_only else found[0]


def _maker(func: Any, args: Sequence[Any], result: Any) -> Callable[[], Any] | None:
    """Makes the like of a result that shares nothing with what was there; None where that is not so."""
    # `_unsafe_view` returns a view and does not say so.
    if func is _aten._unsafe_view.default or any(one.alias_info is not None for one in func._schema.returns):
        return None
    if isinstance(result, Tensor):
        return _empty_like(result) if result.is_meta else None
    if not isinstance(result, tuple) or not all(
        one is None or (isinstance(one, Tensor) and one.is_meta) for one in result
    ):
        return None
    makers = [None if one is None else _empty_like(one) for one in result]
    return lambda: tuple(None if make is None else make() for make in makers)


def _empty_like(made: Tensor) -> Callable[[], Tensor]:
    return functools.partial(torch.empty_strided, made.shape, made.stride(), dtype=made.dtype, device=META)


def _as_computed(y_BCHW: Tensor, x_BCHW: Tensor, w_OIkk: Tensor) -> Tensor:
    """y in the layout that real convolutions choose: channels_last where input or weights are so (meta does not)."""
    lasts = [
        t.stride(1) == 1 or (t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous())
        for t in (x_BCHW, w_OIkk)
    ]
    if x_BCHW.shape[1] == 1 or not any(lasts):
        return y_BCHW
    return torch.empty(y_BCHW.shape, dtype=y_BCHW.dtype, device=META, memory_format=torch.channels_last)


class _NativeShapes(Reference):
    """What `kernels.primitives.Native` allocates, for fp32 maps."""

    name = "native"

    def stats(self, z_BHWC: Tensor) -> Stats:
        return z_BHWC.new_empty(2, z_BHWC.shape[-1])

    def accumulate_(self, out_BHWC: Tensor, z_BHWC: Tensor, gate: float) -> tuple[Stats, Tensor | None]:
        return self.stats(z_BHWC), None

    def node_sum(self, dy_BHWC: Tensor) -> Tensor | None:
        return None

    def norm_backward(
        self, dy_BHWC: Tensor, z_BHWC: Tensor, stats: Stats, sum_dy_C: Tensor | None, gate: float
    ) -> tuple[Tensor, Tensor | float]:
        return z_BHWC, 0.0

    def prepare(self, x_BHWC: Tensor, weights: Sequence[Tensor], stats: Stats | None) -> tuple[Tensor, Stats]:
        batch, height, width, _ = x_BHWC.shape
        outputs, halves = sum(weight.shape[0] for weight in weights), len(weights)
        xhat_BHWO = x_BHWC.new_empty(batch, height // halves, width // halves, outputs)
        return xhat_BHWO, self.stats(xhat_BHWO) if stats is None else stats

    def prepared_grads(
        self, d_BHWO: Tensor, xhat_BHWO: Tensor, x_BHWC: Tensor, weights: Sequence[Tensor], stats: Stats,
        *, need_x: bool, need_w: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
        dx = torch.empty_like(x_BHWC) if need_x else None
        return dx, [torch.empty_like(weight) if need_w else None for weight in weights]

    def separable(self, one: Separable, x_BHWC: Tensor) -> Tensor:
        batch, height, width, channels = x_BHWC.shape
        shape = batch, -(-height // one.stride), -(-width // one.stride), channels
        zs = [x_BHWC.new_empty(shape) for _ in range(one.stages)]
        one.inner_stats[len(one.inner_stats) :] = [self.stats(z) for z in zs[len(one.inner_stats) : -1]]
        one.inner_zs[:] = zs[:-1]
        return zs[-1]

    def accumulate_separable_(
        self, out_BHWC: Tensor, one: Separable, x_BHWC: Tensor, gate: float
    ) -> tuple[Tensor, Stats, Tensor | None]:
        z_BHWC = self.separable(one, x_BHWC)
        return z_BHWC, self.stats(z_BHWC), None

    def separable_backward(
        self, one: Separable, x_BHWC: Tensor, dy_BHWC: Tensor, z_BHWC: Tensor, stats: Stats, sum_dy_C: Tensor | None,
        gate: float, grad: Tensor | None, weight_grads: Sequence[Tensor], *, need_x: bool,
    ) -> tuple[Tensor | float, Tensor | None]:  # fmt: skip
        dx_BHWC = x_BHWC.new_empty(x_BHWC.shape) if need_x and grad is None else grad
        one.release()
        return 0.0, dx_BHWC

    def max_pool(self, x_BHWC: Tensor, stride: int) -> Tensor:
        batch, height, width, channels = x_BHWC.shape
        return x_BHWC.new_empty(batch, -(-height // stride), -(-width // stride), channels)

    def add_max_pool_grad(self, grad: Tensor | None, dz_BHWC: Tensor, x_BHWC: Tensor, stride: int) -> Tensor:
        return x_BHWC.new_empty(x_BHWC.shape) if grad is None else grad

    avg_pool, add_avg_pool_grad = max_pool, add_max_pool_grad

    def add_relu_grad(self, grad: Tensor | None, da_BHWC: Tensor, x_BHWC: Tensor, relu_BHWC: Tensor) -> Tensor:
        return super().add_relu_grad(grad, da_BHWC, x_BHWC, relu_BHWC) if grad is None else grad


class ShapeNet(SuperNet):
    """A SuperNet without values; arguments as there."""

    def __init__(self, space: SearchSpace, *, dtype: torch.dtype, impl: Any, **rest: Any) -> None:
        with META:
            super().__init__(space, dtype=dtype, impl=impl, **rest)
        if impl == "native" and dtype == torch.float32:
            self._kernels = _NativeShapes()


class KnownSampler(Sampler):
    """A sampler whose draws are known beforehand, for paths that are read on the host.

    Args:
        choices: what each network of a step on alpha and of one on the weights runs; None where nothing on the host
            depends on it.
    """

    def __init__(self, space: SearchSpace, config: SearchConfig, choices: Mapping[Part, Choice] | None) -> None:
        with META:
            super().__init__(space, config)
        self.choices = choices

    def draw(self, clock: int | Tensor, tau: float | Tensor, *, grad: bool, part: Part = "alpha") -> Sample:
        sample = super().draw(clock, tau, grad=grad, part=part)
        if self.choices is None:
            return sample
        networks = tuple(
            {kind: dataclasses.replace(path, indices_EK=_indices(chosen[kind])) for kind, path in paths.items()}
            for paths, chosen in zip(sample.networks, self.choices[part], strict=True)
        )
        return Sample(networks, sample.indices, sample.log_probability)

    def mixture(self) -> Paths:
        if self.choices is None:
            return super().mixture()
        every = tuple(range(self.space.num_operations))
        return {
            kind: dataclasses.replace(path, indices_EK=_indices((every,) * len(path.gates_EO)))
            for kind, path in super().mixture().items()
        }


def _indices(rows: tuple[tuple[int, ...], ...]) -> Tensor:
    """[E, K] on the host, -1 where an edge has fewer operations than the widest."""
    width = max(1, *(len(row) for row in rows))
    return torch.tensor([(*row, *[-1] * (width - len(row))) for row in rows])


class _ShapeSGD(SampledSGD):
    # Told of the gradients before they are used up.
    seen: Callable[[list[Tensor]], None]

    def clip(self, max_norm: float) -> Tensor:
        """As there, one gradient after the other: torch's grouped form refuses meta tensors."""
        used = [parameter for parameter in self.parameters if parameter.grad is not None]
        grads = [p.grad for p in used if p.grad is not None]
        self.seen(grads)
        norm = torch.nn.utils.get_total_norm(grads)
        torch.nn.utils.clip_grads_with_norm_(used, max_norm, norm)
        return norm


class _ShapeAdam:
    """The state of torch's fused Adam, which refuses meta tensors."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.state = [torch.empty_like(p, requires_grad=False) for p in parameters for _ in range(2)]
        self.state += [torch.empty((), device=META) for _ in parameters]
        self.found_inf: Tensor | None = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        return None


class ShapeLearner(Learner):
    """A Learner on meta tensors that has taken steps before: its optimizers have all of their state.

    Args:
        config, net, sampler: as there.
        seen: called with the weights' gradients of each W step.

    Attributes:
        optimizer_state: tensors.
    """

    def __init__(
        self, config: SearchConfig, net: SuperNet, sampler: Sampler, *, seen: Callable[[list[Tensor]], None]
    ) -> None:
        super().__init__(config, net, sampler)
        weights = list(net.parameters())
        self.weight_optimizer = sgd = _ShapeSGD(
            weights, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
        )
        sgd.seen = seen
        sgd.buffers = [torch.empty_like(weight, requires_grad=False) for weight in weights]
        adam = _ShapeAdam(list(sampler.parameters()))
        self.alpha_optimizer: Any = adam
        buffers = [buffer for buffer in sgd.buffers if buffer is not None]
        self.optimizer_state = [*buffers, *adam.state]
