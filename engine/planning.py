"""Which K, batch, policy and mode a search would run with on a machine, and why.

Nothing is run: the step is traced on tensors without data (see `prediction`).
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ..profiles.budget import Budget
from ..profiles.errors import BudgetError
from ..profiles.planner import MARGIN, Choices, Plan, Setting, Surface, plan, usable_bytes
from ..profiles.predictor import Prediction, Speed
from .config import POLICIES, SearchConfig, build
from .errors import ConfigError
from .implementation import resolve
from .machine import GRAPH_LAUNCH_S, HOST_LAUNCH_S, OLDEST_TRITON_ARCH, Machine
from .method import METHODS, method_named
from .prediction import Impl, QuickProbe, SearchProbe, Target
from .space import space_named

# What a plan decides where the user did not.
PLANNED = ("k", "batch", "policy", "mode", "dtype")
# From the one that keeps the least to the one that keeps the most.
BY_MEMORY = tuple(reversed(POLICIES))
# A larger batch than this many times the recipe's is not taken for the sake of speed alone: its learning rates are
# for the recipe's (ours).
MOST_GROWTH = 16
CLASSES = {"cifar100": 100}
# Of a folder of images that is not there.
IMAGENET_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a setting at the wanted batch, and how far its batch could grow.

    Attributes:
        method: its name.
        setting: K, batch, policy, mode, dtype.
        prediction: for it.
        largest_batch: the largest that fits the budget, None where not even two images do.
    """

    method: str
    setting: Setting
    prediction: Prediction
    largest_batch: int | None


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """A plan for a search on a machine.

    Attributes:
        config: what to search with.
        machine: where.
        budget: as it was asked for.
        budget_bytes: what that is here.
        target: how the machine runs it.
        plan: the choice and its reasons.
        most_batch: the largest batch that was looked at.
        rows: the table, empty unless it was asked for.
    """

    config: SearchConfig
    machine: Machine
    budget: Budget
    budget_bytes: int
    target: Target
    plan: Plan
    most_batch: int
    rows: tuple[Row, ...] = ()

    @property
    def limit_bytes(self) -> int:
        return usable_bytes(self.budget_bytes, MARGIN)


class Planner:
    """Plans for one configuration on one machine.

    Args:
        config: of the search.
        machine: where it would run.
        budget: of the machine's memory.
        pins: names of PLANNED that stay as `config` has them.
        like: a planner of another method on the same network, to share what it learns.

    Attributes:
        target: how the machine runs it.
        probe: predicts exactly.
        surface: predicts quickly, for many settings.

    Raises:
        BudgetError: the machine has less than the budget.
        ConfigError: an implementation that cannot run there.
    """

    def __init__(
        self, config: SearchConfig, machine: Machine, budget: Budget, pins: Collection[str] = (), *,
        like: Planner | None = None,
    ) -> None:  # fmt: skip
        self.config, self.machine, self.budget = config, machine, budget
        self.pins = set(pins) & set(PLANNED) | set(method_named(config.method).fixed)
        self.budget_bytes = machine.bytes_of(budget)
        self.target = target_of(config, machine)
        if like is not None and like.target == self.target:
            self.probe: SearchProbe = like.probe.of(config)
        else:
            self.probe = SearchProbe(config, self.target, classes=classes_of(config))
        self.surface = Surface(QuickProbe(self.probe))

    def plan(self) -> SearchPlan:
        """The plan, held to a trace of exactly that step.

        Raises:
            BudgetError: nothing fits.
        """
        choices = self.choices()
        found = plan(self.surface, self.budget_bytes, choices, exact=self.probe)
        config = dataclasses.replace(self.config, **dataclasses.asdict(found.setting))
        return SearchPlan(config, self.machine, self.budget, self.budget_bytes, self.target, found, choices.max_batch)

    def choices(self) -> Choices:
        """What is free."""
        config, pins = self.config, self.pins
        # A batch holds no image twice.
        images = config.limit or MOST_GROWTH * config.batch
        most = max(config.batch, min(images, MOST_GROWTH * config.batch))
        batches = (config.batch, config.batch) if "batch" in pins else (2, most)
        policies = (config.policy,) if "policy" in pins or config.policy == "autograd" else BY_MEMORY
        modes: Sequence[str] = (config.mode,) if "mode" in pins else ("union", "subgraphs")
        ks: Sequence[int] = (config.k,) if "k" in pins else ks_of(config)
        if config.teacher == "ensemble":
            modes, ks = ("subgraphs",), [k for k in ks if k > 1]
        dtypes = (config.dtype,)
        return Choices(
            tuple(ks), config.batch, batches[1], batches[0], policies, tuple(modes), dtypes,
            cells=config.layers if len(policies) > 1 else 0,
        )  # fmt: skip

    def rows(self) -> list[Row]:
        """Every mode, K and policy, at the wanted batch.

        One sub-graph after the other takes the same memory for every K, so that the largest stands for all.
        """
        choices, config = self.choices(), self.config
        limit_bytes = usable_bytes(self.budget_bytes, MARGIN)
        found = []
        for mode in choices.modes:
            alone = mode == "subgraphs" and config.execution == "sequential"
            for k in choices.ks[-1:] if alone else choices.ks:
                for policy in choices.policies:
                    setting = Setting(k, config.batch, policy, mode, config.dtype)
                    most = max(config.batch, choices.max_batch)
                    largest = self.surface.largest_batch(setting, 2, most, limit_bytes)
                    batch = None if largest is None else largest.batch
                    found.append(Row(config.method, setting, self.surface.at(setting), batch))
        return found


def plan_search(
    config: SearchConfig, machine: Machine, budget: Budget, *, pins: Collection[str] = (),
    methods: Sequence[str] = (), workers: int = 1,
) -> SearchPlan:  # fmt: skip
    """The plan for a search, with the table of some methods.

    Args:
        config: of the search.
        machine: where it would run.
        budget: of the machine's memory.
        pins: keys that stay as `config` has them: what the user gave.
        methods: whose settings the table lists.
        workers: processes that trace. More than one only where this process has used torch for nothing yet: they are
            forked, and OpenMP's threads do not survive that.

    Raises:
        BudgetError: the budget is above what the machine has, or below what the smallest step needs.
        ConfigError: a setting that no search can run with.
    """
    mine = Planner(config, machine, budget, pins)
    planners = {config.method: mine}
    for method in methods:
        if method not in planners:
            planners[method] = Planner(_with_method(config, method), machine, budget, pins, like=mine)
    others = [method for method in methods if method != config.method]
    if workers == 1 or not others:
        made = mine.plan()
        rows = [row for method in methods for row in planners[method].rows()]
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _planners.update, (planners,)) as pool:
            waiting = [pool.submit(_rows, method) for method in others]
            try:
                made = mine.plan()
            except BudgetError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            rows = mine.rows() if config.method in methods else []
            rows += [row for method in waiting for row in method.result()]
    return dataclasses.replace(made, rows=tuple(sorted(rows, key=lambda row: methods.index(row.method))))


# Of a forked process: its planners by method.
_planners: dict[str, Planner] = {}


def _rows(method: str) -> list[Row]:
    return _planners[method].rows()


def _with_method(config: SearchConfig, name: str) -> SearchConfig:
    """The configuration with another method's settings."""
    values = dataclasses.asdict(config)
    for key in {**method_named(config.method).fixed, **method_named(name).fixed}:
        del values[key]
    return build(values, {"method": name})


def methods_named(text: str) -> tuple[str, ...]:
    """Methods of a list as `msg,darts`.

    Raises:
        ConfigError: for an unknown one.
    """
    return tuple(method_named(name.strip()).name for name in text.split(",")) if text else tuple(METHODS)


def ks_of(config: SearchConfig) -> tuple[int, ...]:
    """1, 2, 4 and so on, and all operations of the space."""
    operations = space_named(config.space).num_operations
    return (*(1 << n for n in range(operations) if 1 << n < operations), operations)


def classes_of(config: SearchConfig) -> int:
    """Of the data set, which need not be there."""
    if config.data.startswith("imagefolder:"):
        folder = Path(config.data.partition(":")[2]).expanduser()
        return (sum(path.is_dir() for path in folder.iterdir()) or 1) if folder.is_dir() else IMAGENET_CLASSES
    return CLASSES.get(config.data, 10)


def target_of(config: SearchConfig, machine: Machine) -> Target:
    """How a machine would run a search.

    Raises:
        ConfigError: `impl` or `dtype` cannot be had there.
    """
    impl: Impl
    if machine.cuda:
        impl = _gpu_impl(config, machine)
    else:
        impl, _ = resolve(config, torch.device("cpu"))
    graph = config.graph and impl == "triton"
    launch_s = GRAPH_LAUNCH_S if graph else HOST_LAUNCH_S
    speeds = {dtype: Speed(machine.bytes_per_s, flops, launch_s) for dtype, flops in machine.flops.items()}
    if config.dtype not in speeds or (config.dtype == "bfloat16" and impl != "triton"):
        raise ConfigError(
            f"{config.dtype} maps cannot run on {machine.name}", got=f"dtype {config.dtype}",
            allowed="float32, float64", next="--dtype float32",
        )  # fmt: skip
    return Target(machine.name, machine.cuda, impl, graph, speeds, machine.context_bytes, machine.workspace_bytes)


def _gpu_impl(config: SearchConfig, machine: Machine) -> Impl:
    """As `implementation.resolve` would say there, without the GPU."""
    old = machine.arch is not None and machine.arch < OLDEST_TRITON_ARCH
    plain = old or config.gate == "recompute" or config.policy == "autograd"
    if config.impl == "native" or (config.impl == "triton" and plain):
        raise ConfigError(
            f'impl = "{config.impl}" cannot run on {machine.name}', got=f"gate {config.gate}, policy {config.policy}",
            allowed="impl auto or reference", next="--impl auto",
        )  # fmt: skip
    return "reference" if plain or config.impl == "reference" else "triton"
