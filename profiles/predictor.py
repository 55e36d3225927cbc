"""Peak bytes of any step that can run on tensors without data, from the order of its allocations and frees.

A `Recorder` watches the step storage by storage and takes down every birth and end; the peak, its split by category
and what PyTorch's CUDA allocator would reserve are then read off that sequence. The tensors may be meta or fake
ones: nothing is computed. Scratch that a custom operator takes and gives back inside is invisible from outside and
has to be declared.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .trace import KEPT, STATE, TRANSIENT, Peak, Section, Trace, Work

# Python frames between an operator and a dispatch mode, by torch's names.
_DISPATCH_FRAMES = ("__torch_dispatch__", "_fn", "inner")
_ADD, _ADD_ = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor


Call = tuple[Sequence[Any], Mapping[str, Any]]
# Sizes in bytes of what an operator has alive inside at most, and its work where its arguments do not tell.
Scratch = Callable[[Any, Call], tuple[int, ...]]
Effort = Callable[[Any, Call], "tuple[int, int] | None"]
# (operator, positional arguments, keyword arguments, signature) -> result.
Runner = Callable[[Any, Sequence[Any], Mapping[str, Any], Hashable], Any]


def signature(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """What two calls share exactly if they allocate, move and compute the same."""
    return (func, *map(_facts, args), *((name, _facts(value)) for name, value in kwargs.items()))


def _facts(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.is_meta
    if isinstance(value, list | tuple):
        return tuple(map(_facts, value))
    # 1, 1.0 and True are equal, and promote differently.
    return (value.__class__, value)


class Known(NamedTuple):
    """What a recorder needs of a call each time that it comes by."""

    scratch_bytes: tuple[int, ...]
    work: Work | None


class Recorder(TorchDispatchMode):
    """Context manager that takes down the births and ends of storages inside it.

    Args:
        run: runs an operator; without it the operator itself does.
        known: of calls by signature, to be shared by recorders of the same `scratch` and `effort`.
        scratch: sizes in bytes of what an operator has alive inside at most; none for those that need none.
        effort: what a launch moves and computes; None where shapes and torch's own FLOP formulas tell.
    """

    def __init__(
        self, *, scratch: Scratch | None = None, effort: Effort | None = None, run: Runner | None = None,
        known: dict[Hashable, Known] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._scratch, self._effort, self._run = scratch, effort, run
        self._known = {} if known is None else known
        self._sizes: list[int] = []
        self._categories: list[str] = []
        self._events: list[int] = []
        self._work: Counter[Work] = Counter()
        self._sections: dict[str, Section] = {}
        self._serials: dict[int, int] = {}
        self._in_backward = False

    def adopt(self, category: str, tensors: Iterable[Tensor]) -> None:
        """Say what these tensors are; those that were not seen yet count as alive from now on."""
        for tensor in tensors:
            serial = self._serials.get(tensor.untyped_storage()._cdata)
            if serial is None:
                serial = self._birth(tensor)
            if serial is not None:
                self._categories[serial] = category

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Give a name to what happens inside; what happened before and has none is `state`."""
        self._close(STATE)
        yield
        self._close(name)

    def trace(self) -> Trace:
        self._close(STATE)
        return Trace(tuple(self._sizes), tuple(self._categories), dict(self._sections))

    def _close(self, name: str) -> None:
        if self._events or name not in self._sections:
            before = self._sections.get(name, Section((), {}))
            self._sections[name] = Section(before.events + tuple(self._events), Counter(before.work) + self._work)
        self._events, self._work = [], Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._notice_backward()
        if _is_view(func):
            return func(*args, **kwargs)
        if self._in_backward and func is _ADD and _engine_adds():
            func = _ADD_
        key = signature(func, args, kwargs)
        result = func(*args, **kwargs) if self._run is None else self._run(func, args, kwargs, key)
        born = False
        for value in _tensors(result):
            born |= value.untyped_storage()._cdata not in self._serials and self._birth(value) is not None
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._learn(func, args, kwargs, result, born)
        if known.scratch_bytes:
            self._pass_through(known.scratch_bytes)
        if known.work is not None:
            self._work[known.work] += 1
        return result

    def _learn(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, born: bool) -> Known:
        call = (args, kwargs)
        scratch_bytes = () if self._scratch is None else self._scratch(func, call)
        if not (born or func._schema.is_mutable):
            return Known(scratch_bytes, None)
        found = None if self._effort is None else self._effort(func, call)
        return Known(scratch_bytes, Work(*found) if found else _work(func, args, kwargs, result))

    def _pass_through(self, sizes_bytes: tuple[int, ...]) -> None:
        """Storages that live at the same time and for this moment only."""
        first = len(self._sizes) + 1
        self._sizes += sizes_bytes
        self._categories += [TRANSIENT] * len(sizes_bytes)
        serials = range(first, first + len(sizes_bytes))
        self._events += [*serials, *(-serial for serial in serials)]

    def _notice_backward(self) -> None:
        """When a backward pass begins, what is alive of the forward pass is what was kept for it."""
        inside = torch._C._current_graph_task_id() != -1
        if inside and not self._in_backward:
            for serial in self._serials.values():
                if self._categories[serial] == TRANSIENT:
                    self._categories[serial] = KEPT
        self._in_backward = inside

    def _birth(self, tensor: Tensor) -> int | None:
        storage = tensor.untyped_storage()
        key, size_bytes = storage._cdata, storage.nbytes()
        if not size_bytes:
            return None
        serial = self._serials[key] = len(self._sizes)
        self._sizes.append(size_bytes)
        self._categories.append(TRANSIENT)
        self._events.append(serial + 1)
        weakref.finalize(storage, self._end, key, serial).atexit = False
        return serial

    def _end(self, key: int, serial: int) -> None:
        del self._serials[key]
        self._events.append(-serial - 1)


@functools.cache
def _is_view(func: Any) -> bool:
    """Whether an operator only looks at storages that were there; `lift_fresh` is the first to see a new one."""
    returns = [returned.alias_info for returned in func._schema.returns]
    return bool(returns) and all(a is not None and not a.is_write for a in returns) and "lift" not in func._schema.name


def _engine_adds() -> bool:
    """Whether the autograd engine itself sums gradients that meet at a tensor, no function's own backward pass.

    It does so in place, but not while a dispatch mode looks on.
    """
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_name in _DISPATCH_FRAMES:
        frame = frame.f_back
    return frame.f_code.co_name == "_engine_run_backward"


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors of an operator's arguments or result: its schema nests lists at most once."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, list | tuple):
                yield from (inner for inner in value if isinstance(inner, Tensor))


def _work(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Work:
    """Every argument read once and every result written once; FLOPs where torch has a formula."""
    moved_bytes = sum(
        value.numel() * value.element_size()
        for values in (args, tuple(kwargs.values()), result)
        for value in _tensors(values)
    )
    formula = flop_registry.get(func._overloadpacket)
    return Work(moved_bytes, 0 if formula is None else int(formula(*args, **kwargs, out_val=result)))


@dataclass(frozen=True, slots=True)
class Speed:
    """What a device can do at best; a time made of it is a lower bound.

    Attributes:
        bytes_per_s: of its memory.
        flops: operations per second in the step's dtype.
        launch_s: that one more launch costs, however small.
    """

    bytes_per_s: float
    flops: float
    launch_s: float

    def seconds(self, work: Mapping[Work, int]) -> float:
        """The roofline's time of some launches, one after the other."""
        return sum(
            count * (self.launch_s + max(one.moved_bytes / self.bytes_per_s, one.flops / self.flops))
            for one, count in work.items()
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a step is predicted to take; nothing of it was measured.

    Attributes:
        peak: of requested bytes.
        allocator_bytes: what the device's allocator holds for it at most; on a CPU the peak itself.
        context_bytes: what the driver takes for a process before the first tensor.
        workspace_bytes: of libraries, outside the step's own tensors.
        step_s: time of one step, a lower bound.
        samples: images that one step reads.
    """

    peak: Peak
    allocator_bytes: int
    context_bytes: int
    workspace_bytes: int
    step_s: float
    samples: int

    @property
    def needed_bytes(self) -> int:
        """What has to be free on the device."""
        return self.allocator_bytes + self.context_bytes + self.workspace_bytes

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.step_s
