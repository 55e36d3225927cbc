"""The memory and the time of a search's step, predicted from its configuration alone.

The step is the search's own, run on meta tensors: a Learner's W step and its alpha step, optimizer state, teacher,
kept activations and all. Shape suffixes: E edges, K ranks, O operations.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...profiles.planner import Probe
from ...profiles.predictor import Known, Prediction, Recorder, Speed
from ...profiles.trace import Peak, Run, Trace
from ..learning.draws import PARTS, Part, rule_of
from ..learning.passes import Feed
from ..learning.sampler import Sampler
from ..settings.config import SearchConfig, stages_of
from ..settings.inputs import device_pool_bytes
from ..spaces.space import FAMILIES, ZERO, CellSpec, Edge, SearchSpace, space_named
from ..supernet.ops import TABLES, Zero, operation_at
from .cpu_scratch import CpuScratch
from .shapes import META, Choice, KnownSampler, ShapeLearner, ShapeNet, Shapes

Impl = Literal["triton", "native", "reference"]
# A prime that no size but the batch's multiples has in it, and more than a stem's chunk at CIFAR's size.
PRIME_BATCH = 97
# Side and channels of the maps on which operations are compared; their order is that of any others.
COMPARED_SIDE, COMPARED_CHANNELS, COMPARED_BATCH = 16, 16, 4

# By which a prediction may miss, as a share of the measured peak: exact to a few bytes on a CPU, on CUDA not measured
# yet (ours).
TOLERANCES = {"cpu": 0.005, "cuda": 0.05}
STEPS = [Run("state"), Run("weight"), Run("alpha"), Run("weight")]


@dataclass(frozen=True)
class Target:
    """What a plan is made for.

    Attributes:
        name: for people.
        cuda: whether PyTorch's CUDA allocator serves it; its segments are then what counts.
        impl: of the cells.
        graph: whether steps are captured as CUDA graphs.
        speeds: by dtype of the maps.
        context_bytes, workspace_bytes: see `Prediction`.
        correction: what the device's allocator holds over what is predicted without it.
    """

    name: str
    cuda: bool
    impl: Impl
    graph: bool
    speeds: Mapping[str, Speed]
    context_bytes: int = 0
    workspace_bytes: int = 0
    correction: float = 1.0


class SearchProbe:
    """Predictions for a search: `probe(k, batch, policy, mode, dtype)`.

    Args:
        config: everything but the five.
        target: where it would run.
        classes: of the data set.
        guided: whether the teacher acts in the step, where the configuration has one.
        dropped: whether Dropblock-Identity acts in the step.
        choices: what the networks of a step on alpha and of one on the weights run; the dearest operations of every
            edge where it is None.
    """

    def __init__(
        self, config: SearchConfig, target: Target, *, classes: int = 10, guided: bool = True, dropped: bool = True,
        choices: Mapping[Part, Choice] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.target, self.classes = config, target, classes
        self.guided, self.dropped, self.choices = guided, dropped, choices
        self.space = space_named(config.space)
        self._cpu_scratch, self._shapes = CpuScratch(), Shapes()
        self._known: dict[Hashable, Known] = {}
        self._nets: dict[tuple[str, bool, int], ShapeNet] = {}

    def of(self, config: SearchConfig) -> SearchProbe:
        """The probe of another method on the same network, which shares what this one learns."""
        other = copy.copy(self)
        other.config = config
        return other

    def __call__(self, k: int, batch: int, policy: str, mode: str, dtype: str) -> Prediction:
        """The prediction for one setting.

        Raises:
            ConfigError: for a setting that no search can run with.
        """
        changes: dict[str, Any] = {
            "k": k, "k_schedule": "", "batch": batch, "policy": policy, "mode": mode, "dtype": dtype,
        }  # fmt: skip
        config = dataclasses.replace(self.config, **changes)
        return self.read(self.trace(config), batch, dtype)

    def read(self, trace: Trace, batch: int, dtype: str, *, passes: float = 1.0) -> Prediction:
        """The prediction that a trace stands for; `passes` is how often the search runs what the trace has once."""
        peak, held_bytes = self.held(trace)
        allocator_bytes = int(held_bytes * self.target.correction)
        step_s = passes * self.target.speeds[dtype].seconds(trace.work(("weight", "alpha")))
        workspace_bytes = self.target.workspace_bytes
        if self.target.cuda:
            workspace_bytes += device_pool_bytes(self.config, batch, getattr(torch, dtype).itemsize)
        return Prediction(peak, allocator_bytes, self.target.context_bytes, workspace_bytes, step_s, 2 * batch)

    def held(self, trace: Trace) -> tuple[Peak, int]:
        """The peak of a trace, and what the device's allocator holds for it at most; on a CPU the peak itself."""
        peak = trace.peak(STEPS)
        return peak, trace.reserve(self.order()).reserved_bytes if self.target.cuda else peak.bytes

    def order(self) -> list[Run]:
        """Steps as they happen; captured ones each after one that is not, beside the graphs that exist already."""
        if not self.target.graph:
            return STEPS
        return [
            Run("state"), Run("weight"), Run("weight", "graph", True), Run("alpha"), Run("alpha", "graph", True),
        ]  # fmt: skip

    def trace(self, config: SearchConfig) -> Trace:
        """One W step and one alpha step of `config`, in sections `weight` and `alpha`, each once."""
        dtype = getattr(torch, config.dtype)
        net = self._net(config, dtype)
        sampler = KnownSampler(self.space, config, self._choices(config))
        recorder = self._recorder()
        learner = ShapeLearner(config, net, sampler, seen=lambda grads: recorder.adopt("gradients", grads))
        feed = _feed(config, dtype)
        dropped = self.dropped and config.dbi != "off"
        guided = self.guided and learner.guidance.kind != "none"
        if guided:
            learner.guidance.judge(0.0, 1.0)
        ema = [] if learner.guidance.ema is None else list(learner.guidance.ema.parameters())
        weights, alphas = list(net.parameters()), list(sampler.parameters())
        with recorder:
            recorder.adopt("parameters", [*weights, *net.buffers(), *alphas, *ema])
            recorder.adopt("optimizer", learner.optimizer_state)
            recorder.adopt("images", [feed.images_BCHW, feed.labels_B])
            if self.target.graph:
                recorder.adopt("images", [torch.empty_like(feed.images_BCHW), torch.empty_like(feed.labels_B)])
            with recorder.section("weight"):
                learner.weight_update(feed, guided=guided, dropped=dropped)
            with recorder.section("alpha"):
                learner.alpha_update(feed, dropped=dropped)
                recorder.adopt("gradients", [alpha.grad for alpha in alphas if alpha.grad is not None])
            trace = recorder.trace()
        return trace

    def _recorder(self) -> Recorder:
        if not self.target.cuda:
            return Recorder(scratch=self._cpu_scratch, run=self._shapes, known=self._known)
        if importlib.util.find_spec("triton") is None:
            return Recorder(run=self._shapes, known=self._known)
        from ...kernels import scratch

        return Recorder(scratch=scratch.scratch_sizes, effort=scratch.effort, run=self._shapes, known=self._known)

    def _net(self, config: SearchConfig, dtype: torch.dtype) -> ShapeNet:
        """The net of a dtype, made once: the policy is all that differs."""
        plain = config.policy == "autograd"
        key = (config.dtype, plain, config.partial)
        if key not in self._nets:
            self._nets[key] = ShapeNet(
                self.space, channels=config.channels, layers=config.layers, stem=config.stem, classes=self.classes,
                policy=("autograd",) if plain else config.policies, layout=config.layout, seed=config.seed,
                dtype=dtype, partial=config.partial, impl="reference" if plain else self.target.impl,
            )  # fmt: skip
        net = self._nets[key]
        if not plain:
            net.policies = config.policies
        return net

    def _choices(self, config: SearchConfig) -> Mapping[Part, Choice] | None:
        if self.target.impl == "triton" and config.policy != "autograd":
            return None
        return self.choices or {part: dearest(self.space, config, part) for part in PARTS}


class QuickProbe:
    """As `SearchProbe`, from one run for all batches, to survey many settings; a plan is then held to a real one.

    Sizes that grow with the batch are told from the others by a prime batch. Sub-graphs that run one after the other
    are traced as two: a third finds and leaves the memory as the second does. Above the truth for batches of less
    than a stem's chunk.
    """

    def __init__(self, probe: SearchProbe) -> None:
        self.probe = probe
        self._traces: dict[tuple[int, str, str, str], Trace] = {}

    def __call__(self, k: int, batch: int, policy: str, mode: str, dtype: str) -> Prediction:
        config = self.probe.config
        alone = mode == "subgraphs" and config.execution == "sequential"
        traced_k = min(k, 2) if alone else k
        key = (traced_k, policy, mode, dtype)
        if key not in self._traces:
            changes: dict[str, Any] = {
                "k": traced_k, "k_schedule": "", "batch": PRIME_BATCH, "policy": policy, "mode": mode, "dtype": dtype,
            }  # fmt: skip
            self._traces[key] = self.probe.trace(dataclasses.replace(config, **changes))
        trace = self._traces[key].scaled(PRIME_BATCH, batch)
        return self.probe.read(trace, batch, dtype, passes=k / traced_k)


class StagedProbe:
    """A probe for searches whose K follows a schedule: the dearest of the stages, and their mean time.

    Args:
        probe: for one K.
        config: `k_schedule` is read.
    """

    def __init__(self, probe: Probe, config: SearchConfig) -> None:
        self.probe, self.config = probe, config

    def stages(self, k: int, batch: int, policy: str, mode: str, dtype: str) -> dict[int, Prediction]:
        """The prediction for each K of the schedule whose largest is `k`."""
        ks = stages_of(k, self.config.k_schedule)
        return {one: self.probe(one, batch, policy, mode, dtype) for one in dict.fromkeys(ks)}

    def __call__(self, k: int, batch: int, policy: str, mode: str, dtype: str) -> Prediction:
        stages = self.stages(k, batch, policy, mode, dtype)
        dear = max(stages.values(), key=lambda found: found.needed_bytes)
        ks = stages_of(k, self.config.k_schedule)
        return dataclasses.replace(dear, step_s=sum(stages[one].step_s for one in ks) / len(ks))


def alike(space: SearchSpace, policy: str) -> str:
    """The policy, of all cells or of each, that keeps what this one does: `nodes` adds preprocessed inputs to `min`."""
    return policy if any(spec.preprocess for spec in space.cells) else policy.replace("nodes", "min")


def choices_of(sampler: Sampler, draw: int, tau: float) -> dict[Part, Choice]:
    """What the sampler's draws of that number run, in a step on alpha and in one on the weights."""
    samples = {part: sampler.draw(draw, tau, grad=False, part=part) for part in PARTS}
    return {
        part: [{kind: path.operations for kind, path in paths.items()} for paths in sample.networks]
        for part, sample in samples.items()
    }


def spread(probe: SearchProbe, config: SearchConfig, draws: int) -> list[int]:
    """What the allocator holds at the peak for draws of alpha as it is at first, in rising order; on a CPU.

    There every operation is as likely as another, so that each is among the K of an edge with probability K / O. As
    alpha sharpens, what is sampled drifts towards the dearest sample or away from it.
    """
    sampler = Sampler(probe.space, config)
    found = []
    for number in range(draws):
        one = copy.copy(probe)
        one.choices = choices_of(sampler, number, config.tau_max)
        found.append(one.held(one.trace(config))[1])
    return sorted(found)


def _feed(config: SearchConfig, dtype: torch.dtype) -> Feed:
    images = torch.empty(config.batch, 3, config.image, config.image, dtype=dtype, device=META)
    memory = torch.contiguous_format if config.layout == "nchw" else torch.channels_last
    one = torch.empty((), device=META)
    wide = torch.empty((), dtype=torch.float32 if dtype == torch.bfloat16 else dtype, device=META)
    return Feed(
        images.contiguous(memory_format=memory), torch.empty(config.batch, dtype=torch.int64, device=META),
        torch.empty(2, dtype=torch.int64, device=META), one, wide, one,
    )  # fmt: skip


def dearest(space: SearchSpace, config: SearchConfig, part: Part = "alpha") -> Choice:
    """The sample of a step that takes the most memory: the K dearest operations of every edge.

    Dear is what keeps the most under ordinary autograd, `none` the least. Sub-graphs exclude each other: the n-th
    takes the n-th dearest. Where a draw keeps some edges only, they are the dearest of each node.
    """
    places = {_place(edge) for spec in space.cells for edge in spec.edges}
    costs = {place: _costs(space.family, *place) for place in places}
    order = {place: sorted(range(len(cost)), key=lambda n: (-cost[n], n)) for place, cost in costs.items()}
    # `none` is last in the order, so that leaving it out shortens it.
    rule = rule_of(config, part, min(config.k, space.candidates_per_edge(with_none=config.with_none)))
    taken = {}
    for spec in space.cells:
        rows = zip(spec.edges, space.excluded(spec.kind), strict=True)
        allowed = ([n for n in order[_place(edge)] if n not in excluded] for edge, excluded in rows)
        taken[spec.kind] = [tuple(numbers[: rule.k]) for numbers in allowed]
    if config.edges_per_node:
        for spec in space.cells:
            for row in set(range(len(spec.edges))) - _dearest_edges(spec, costs, config.edges_per_node):
                taken[spec.kind][row] = (space.operations.index(ZERO),)
    if rule.mode == "union":
        return [{kind: tuple(rows) for kind, rows in taken.items()}]
    return [{kind: tuple((row[n],) for row in rows) for kind, rows in taken.items()} for n in range(rule.k)]


def _place(edge: Edge) -> tuple[int, bool]:
    """What an operation's cost depends on."""
    return edge.stride, edge.shortcut


def _dearest_edges(spec: CellSpec, costs: Mapping[tuple[int, bool], tuple[int, ...]], count: int) -> set[int]:
    """Rows of the `count` incoming edges of each node whose dearest operation takes the most."""
    kept: set[int] = set()
    for node in range(spec.inputs, spec.num_states):
        rows = [row for row, edge in enumerate(spec.edges) if edge.target == node]
        kept |= set(sorted(rows, key=lambda row: -max(costs[_place(spec.edges[row])]))[:count])
    return kept


@functools.cache
def _costs(family: str, stride: int, shortcut: bool) -> tuple[int, ...]:
    """Bytes of each operation at its peak under ordinary autograd, 0 for one that is nothing."""
    costs = []
    for name in FAMILIES[family].operations:
        operation = operation_at(TABLES[family], name, stride, shortcut=shortcut)
        shapes = operation.weight_shapes(COMPARED_CHANNELS, COMPARED_CHANNELS, stride)
        weights = [torch.empty(shape, device=META, requires_grad=True) for shape in shapes]
        x = torch.empty(
            COMPARED_BATCH, COMPARED_CHANNELS, COMPARED_SIDE, COMPARED_SIDE, device=META, requires_grad=True
        )
        with Recorder() as recorder:
            recorder.adopt("parameters", weights)
            recorder.adopt("images", [x])
            with recorder.section("one"):
                y = operation.plain(x, weights, stride)
            trace = recorder.trace()
        del y
        costs.append(0 if isinstance(operation, Zero) else trace.peak([Run("one")]).bytes)
    return tuple(costs)
