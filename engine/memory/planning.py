"""Which K, batch, policy and mode a search would run with on a machine, and why.

Nothing is run: the step is traced on tensors without data (see `prediction`).
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from ...profiles.budget import Budget
from ...profiles.errors import BudgetError
from ...profiles.planner import MARGIN, Choices, Plan, Probe, Setting, Surface, best_of, plan, usable_bytes
from ...profiles.predictor import Prediction, Speed
from ..errors import ConfigError
from ..images.filelist import training_root
from ..settings.checks import POLICIES, too_wide
from ..settings.config import SearchConfig, build, doubled_to, stages_of
from ..settings.inputs import device_pool_bytes, encoded
from ..settings.method import METHODS, method_named
from ..spaces.space import space_named
from ..supernet.implementation import choose, resolve
from .machine import GRAPH_LAUNCH_S, HOST_LAUNCH_S, OLDEST_TRITON_ARCH, Machine
from .measured import device_ratio
from .prediction import TOLERANCES, Impl, QuickProbe, SearchProbe, StagedProbe, Target, alike, spread
from .search_plan import Row, SearchPlan

# Batches made ahead that a plan goes up to where memory is left (ours).
MOST_AHEAD = 4
# What a plan decides where the user did not.
PLANNED = ("k", "batch", "policy", "mode", "dtype")
# From the one that keeps the least to the one that keeps the most.
BY_MEMORY = tuple(reversed(POLICIES))
# A larger batch than this many times the recipe's is not taken for the sake of speed alone: its learning rates are
# for the recipe's (ours).
MOST_GROWTH = 16
# Settings that change neither the shapes of a step nor how many passes it has: methods that differ in these alone take
# the same memory and time.
SAME_STEP = (
    "method", "noise", "relaxation", "tau_max", "tau_min", "alpha_half", "alpha_scale", "zero_one", "alpha_kl",
    "choose", "candidates", "keep_ops",
)  # fmt: skip
# One sampled path, K of them, all of them: what the table shows unless it is told otherwise.
TABLE_METHODS = ("msg", "gdas", "darts")
# Draws from the first alpha whose memory is told beside the worst (ours).
SPREAD_DRAWS = 12
CLASSES = {"cifar100": 100}
# Of a folder of images that is not there, and of archives, which are not opened for a plan.
IMAGENET_CLASSES = 1000


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
        alike: see there.

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
        self._given = frozenset(pins)
        self.budget_bytes = machine.bytes_of(budget)
        self.target = target_of(config, machine)
        if like is not None and like.target == self.target:
            self.probe: SearchProbe = like.probe.of(config)
        else:
            self.probe = SearchProbe(config, self.target, classes=classes_of(config))
        self.alike = functools.partial(alike, self.probe.space)
        quick = QuickProbe(self.probe)
        self.surface = Surface(quick, self.alike)
        self._at_k = functools.cache(self.probe)
        self._exact = StagedProbe(self._at_k, config)
        self._stages = Surface(StagedProbe(quick, config), self.alike) if config.k_schedule else self.surface

    def plan(self) -> SearchPlan:
        """The plan, held to a trace of exactly that step.

        Raises:
            BudgetError: nothing fits.
        """
        choices = self.choices()
        found, ahead = self._with_room(choices)
        setting = dataclasses.astuple(found.setting)
        why = found.why
        if each_bytes := self._ahead_bytes(found.setting.batch):
            left_bytes = found.limit_bytes - found.prediction.needed_bytes
            ahead = max(ahead, min(MOST_AHEAD, ahead + left_bytes // each_bytes))
        if self.dtype != self.config.dtype:
            why += (f"{self.dtype}: half the bytes of {self.config.dtype}, which --dtype {self.config.dtype} keeps",)
        if ahead != self.config.prefetch:
            why += (f"prefetch {ahead}: the memory that is left has room for so many batches ahead",)
        found = dataclasses.replace(found, prediction=self._made_ahead(ahead, self._exact)(*setting), why=why)
        config = dataclasses.replace(self.config, **dataclasses.asdict(found.setting), prefetch=ahead)
        at_k = self._made_ahead(ahead, self._at_k)
        return SearchPlan(
            config, self.machine, self.budget, self.budget_bytes, self.target, found, choices.max_batch,
            tuple((k, at_k(k, *setting[1:])) for k in config.k_stages),
        )  # fmt: skip

    def _with_room(self, choices: Choices) -> tuple[Plan, int]:
        """The plan with as many batches made ahead as the configuration says, or as few less as it takes to fit."""
        ahead = self.config.prefetch
        while True:
            try:
                quick = Surface(self._made_ahead(ahead, lambda *setting: self._stages.at(Setting(*setting))))
                return plan(quick, self.budget_bytes, choices, exact=self._made_ahead(ahead, self._exact)), ahead
            except BudgetError:
                if not (ahead and self._ahead_bytes(self.config.batch)):
                    raise
                ahead -= 1

    def _made_ahead(self, ahead: int, probe: Probe) -> Probe:
        """A probe with another number of batches made ahead than the configuration's."""

        def changed(k: int, batch: int, policy: str, mode: str, dtype: str) -> Prediction:
            found = probe(k, batch, policy, mode, dtype)
            more_bytes = (ahead - self.config.prefetch) * self._ahead_bytes(batch)
            return dataclasses.replace(found, workspace_bytes=found.workspace_bytes + more_bytes)

        return changed

    def _ahead_bytes(self, batch: int) -> int:
        """Device bytes of one batch more that is made ahead; 0 where it costs none, is given, or there is none."""
        if not self.target.cuda or "prefetch" in self._given or not self.config.prefetch:
            return 0
        value_bytes = getattr(torch, self.dtype).itemsize
        one, none = (
            device_pool_bytes(dataclasses.replace(self.config, prefetch=ahead), batch, value_bytes) for ahead in (1, 0)
        )
        return one - none

    def spread(self, made: SearchPlan) -> tuple[int, ...]:
        """Peaks of SPREAD_DRAWS draws with a plan; none where kernels take the same for every sample."""
        config = dataclasses.replace(made.config, k_schedule="")
        if self.target.impl == "triton" and config.policy != "autograd":
            return ()
        return tuple(spread(self.probe, config, SPREAD_DRAWS))

    @property
    def dtype(self) -> str:
        """The dtype that was asked for; where it is free, bfloat16 if the device computes in it at least as fast.

        Its maps are half as large, so that it is then leaner and quicker whatever else is chosen.
        """
        flops = {dtype: speed.flops for dtype, speed in self.target.speeds.items()}
        asked = self.config.dtype
        if "dtype" in self.pins or self.target.impl != "triton" or flops.get("bfloat16", 0.0) < flops[asked]:
            return asked
        return "bfloat16"

    def choices(self) -> Choices:
        """What is free."""
        config, pins = self.config, self.pins
        # A batch holds no image twice.
        images = config.limit or MOST_GROWTH * config.batch
        most = max(config.batch, min(images, MOST_GROWTH * config.batch))
        batches = (config.batch, config.batch) if "batch" in pins else (2, most)
        policies = (config.policy,) if "policy" in pins or config.policy == "autograd" else BY_MEMORY
        modes: Sequence[str] = (config.mode,) if "mode" in pins else ("union", "subgraphs")
        if "k" in pins or config.k_schedule[:1].isdigit():
            ks: Sequence[int] = (config.k,)
            modes = [mode for mode in modes if not too_wide(config, config.k, mode)]
        else:
            ks = ks_of(config, modes)
        if config.teacher == "ensemble":
            modes, ks = ("subgraphs",), [k for k in ks if k > 1]
        ks = [k for k in ks if len(stages_of(k, config.k_schedule)) <= config.epochs]
        return Choices(
            tuple(ks), config.batch, batches[1], batches[0], policies, tuple(modes), (self.dtype,),
            cells=config.layers if len(policies) > 1 else 0,
        )  # fmt: skip

    def rows(self, policies: Collection[str] | None = None) -> list[Row]:
        """Every mode and K at the wanted batch, for all policies or some.

        One sub-graph after the other takes the same memory for every K, so that the largest stands for all.
        """
        choices, config = self.choices(), self.config
        limit_bytes = usable_bytes(self.budget_bytes, MARGIN)
        found = []
        for mode in choices.modes:
            alone = mode == "subgraphs" and config.execution == "sequential"
            for k in choices.ks[-1:] if alone else choices.ks:
                for policy in choices.policies if policies is None else policies:
                    setting = Setting(k, config.batch, policy, mode, self.dtype)
                    most = max(config.batch, choices.max_batch)
                    largest = self.surface.largest_batch(setting, 2, most, limit_bytes)
                    batch = None if largest is None else largest.batch
                    found.append(Row(config.method, setting, self.surface.at(setting), batch))
        return found

    def policies(self) -> list[str]:
        """What has to be surveyed: the others keep what one of these keeps."""
        return list(dict.fromkeys(map(self.alike, self.choices().policies)))

    def survey(self, policy: str, *, planned: bool) -> list[dict[Setting, Prediction]]:
        """What `rows`, and `plan` where it is `planned`, will ask of one policy."""
        self.rows((policy,))
        if planned:
            best_of(self._stages, policy, self.choices(), usable_bytes(self.budget_bytes, MARGIN))
        return [surface.known for surface in self._surfaces()]

    def learn(self, surveyed: Sequence[Mapping[Setting, Prediction]]) -> None:
        """Take over what a survey in another process found."""
        for surface, known in zip(self._surfaces(), surveyed, strict=True):
            surface.known.update(known)

    def _surfaces(self) -> list[Surface]:
        return [self.surface, self._stages]


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
    if not methods:
        return mine.plan()
    groups, left_out = _alike(config, methods)
    planners = {
        name: mine if name == config.method else Planner(other, machine, budget, pins, like=mine)
        for name, (other, _) in groups.items()
    }
    with _surveyed_together(planners, mine, workers):
        made = mine.plan()
        spread_bytes = mine.spread(made)
    rows = tuple(row for planner in planners.values() for row in planner.rows())
    sharing = {name: others for name, (_, others) in groups.items()}
    return dataclasses.replace(made, spread_bytes=spread_bytes, rows=rows, alike=sharing, left_out=left_out)


def _alike(
    config: SearchConfig, methods: Sequence[str]
) -> tuple[dict[str, tuple[SearchConfig, tuple[str, ...]]], tuple[str, ...]]:
    """The first method of each step with its configuration and those that share the step; why others cannot run."""
    found: dict[str, tuple[SearchConfig, tuple[str, ...]]] = {}
    steps: dict[str, str] = {}
    left_out = []
    for name in sorted(methods, key=lambda name: name != config.method):
        try:
            other = config if name == config.method else _with_method(config, name)
        except ConfigError as error:
            if len(methods) == 1:
                raise
            left_out.append(f"{name}: {error}")
            continue
        step = repr({key: value for key, value in dataclasses.asdict(other).items() if key not in SAME_STEP})
        first = steps.setdefault(step, name)
        found[first] = (other, ()) if first == name else (found[first][0], (*found[first][1], name))
    order = sorted(found, key=methods.index)
    return {name: found[name] for name in order}, tuple(left_out)


@contextmanager
def _surveyed_together(planners: Mapping[str, Planner], mine: Planner, workers: int) -> Iterator[None]:
    """Let every process survey some policies of some methods; inside the plan's own is done, behind it all are.

    The others' are so while this process plans.
    """
    if workers == 1:
        yield
        return
    tasks = [(method, policy) for method, planner in planners.items() for policy in planner.policies()]
    tasks.sort(key=lambda task: planners[task[0]] is not mine)
    ours = [(method, policy) for method, policy in tasks if planners[method] is mine][::2]
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers - 1, fork, _planners.update, (planners,)) as pool:
        theirs = {task: pool.submit(_survey, *task, planners[task[0]] is mine) for task in tasks if task not in ours}
        for _, policy in ours:
            mine.survey(policy, planned=True)
        for (method, _), future in theirs.items():
            if planners[method] is mine:
                mine.learn(future.result())
        yield
        for (method, _), future in theirs.items():
            planners[method].learn(future.result())


# Of a forked process: its planners by method.
_planners: dict[str, Planner] = {}


def _survey(method: str, policy: str, planned: bool) -> list[dict[Setting, Prediction]]:
    return _planners[method].survey(policy, planned=planned)


def _with_method(config: SearchConfig, name: str) -> SearchConfig:
    """The configuration with another method's settings."""
    values = dataclasses.asdict(config) | {"k_schedule": ""}
    for key in {**method_named(config.method).fixed, **method_named(name).fixed}:
        del values[key]
    return build(values, {"method": name})


def methods_named(text: str) -> tuple[str, ...]:
    """Methods of a list as `msg,darts`; `all` for every one, "" for TABLE_METHODS.

    Raises:
        ConfigError: for an unknown one.
    """
    if text == "all":
        return tuple(METHODS)
    return tuple(method_named(name.strip()).name for name in text.split(",")) if text else TABLE_METHODS


def ks_of(config: SearchConfig, modes: Sequence[str] = ("union",)) -> tuple[int, ...]:
    """1, 2, 4 and so on, and all candidates of an edge, or as many as all of the modes can draw on every edge."""
    space = space_named(config.space)
    most = space.candidates_per_edge(with_none=config.with_none)
    if any(too_wide(config, most, mode) for mode in modes):
        most = space.fewest_candidates(with_none=config.with_none)
    return doubled_to(most)


def classes_of(config: SearchConfig) -> int:
    """That the search tells apart; the data set need not be there."""
    if config.num_classes:
        return config.num_classes
    if config.data.startswith("imagefolder:"):
        folder = training_root(Path(config.data.partition(":")[2]).expanduser())
        return (sum(path.is_dir() for path in folder.iterdir()) or 1) if folder.is_dir() else IMAGENET_CLASSES
    return CLASSES.get(config.data, IMAGENET_CLASSES if encoded(config) else 10)


def target_of(config: SearchConfig, machine: Machine) -> Target:
    """How a machine would run a search, corrected by what it measured before.

    Raises:
        ConfigError: `impl` or `dtype` cannot be had there.
    """
    impl: Impl
    if machine.cuda:
        old = machine.arch is not None and machine.arch < OLDEST_TRITON_ARCH
        reason = f"{machine.name} is older than the kernels' sm_{OLDEST_TRITON_ARCH}" if old else None
        impl, _ = choose(config, "cuda", no_triton=reason)
    else:
        impl, _ = resolve(config, torch.device("cpu"))
    graph = config.graph and impl == "triton"
    launch_s = GRAPH_LAUNCH_S if graph else HOST_LAUNCH_S
    speeds = {dtype: Speed(machine.bytes_per_s, flops, launch_s) for dtype, flops in machine.flops.items()}
    if config.dtype not in speeds:
        raise ConfigError(
            f"{config.dtype} maps cannot run on {machine.name}", got=f"dtype {config.dtype}",
            allowed=", ".join(speeds), next="--dtype float32",
        )  # fmt: skip
    tolerance = TOLERANCES["cuda" if machine.cuda else "cpu"]
    return Target(
        machine.name, machine.cuda, impl, graph, speeds, machine.context_bytes, machine.workspace_bytes,
        device_ratio(machine.model, machine.driver, tolerance) if machine.model else 1.0,
    )  # fmt: skip
