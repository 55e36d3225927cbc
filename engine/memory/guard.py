"""A search's memory budget, kept while it runs: before a step that would break it, and after one that did.

The ladder is `Rung.lower`'s: more micro-batches, then leaner policies, then fewer sampled operations. A search only
ever goes down it; what it stands on is part of its checkpoints.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ...profiles.budget import Budget
from ...profiles.errors import BudgetError, ProfileError, in_words
from ...profiles.room import ReadRoom, Room, gpu_room, host_room
from ...profiles.trace import Peak
from ..errors import FollowedError
from ..learning.rung import Rung
from ..learning.steps import Learner
from ..settings.config import SearchConfig, resolved_teacher
from ..settings.inputs import device_pool_bytes
from ..supernet.exhausted import DOUBTFUL_TEXTS, OUT_OF_MEMORY_TEXTS, is_out_of_memory
from ..supernet.implementation import Impl
from .prediction import SearchProbe, Target

Result = TypeVar("Result")
LABEL_BYTES = 8


def _sentence(error: BaseException) -> str:
    """The part of an error's text that speaks of memory, for one line."""
    parts = [part.strip() for part in re.split(r"\. |\n", str(error)) if part.strip()]
    found = [part for part in parts if any(words in part.lower() for words in OUT_OF_MEMORY_TEXTS)]
    return [*found, *parts, type(error).__name__][0][:120]


def release(device: torch.device) -> None:
    """Give freed memory back to the device, or to the system where its allocator can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def room_of(device: torch.device) -> Iterator[ReadRoom]:
    """Tells the device's memory: by NVML where the driver answers, else by CUDA itself; on a CPU the system's."""
    if device.type != "cuda":
        yield host_room()
        return
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    with ExitStack() as stack:
        try:
            read = stack.enter_context(gpu_room(uuid))
        except ProfileError:

            def read() -> Room:
                free_bytes, total_bytes = torch.cuda.mem_get_info(device)
                return Room(total_bytes, free_bytes, "CUDA")

        yield read


def context_bytes(device: torch.device, read_room: ReadRoom) -> int:
    """What the driver takes for this process when it first uses the device; 0 where it has tensors there already."""
    if device.type != "cuda" or torch.cuda.memory_reserved(device):
        return 0
    before_bytes = read_room().free_bytes
    torch.zeros(1, device=device)
    return max(0, before_bytes - read_room().free_bytes - torch.cuda.memory_reserved(device))


class Forecast:
    """Predicted bytes of a search's worst step on each rung of the ladder.

    Args:
        config: of the search.
        classes: of its data set.
        impl, cuda, graph: how its steps run.

    Attributes:
        correction: what this device took over what was predicted, 1 or more.
    """

    def __init__(self, config: SearchConfig, *, classes: int, impl: Impl, cuda: bool, graph: bool) -> None:
        self.config, self.classes, self.graph = config, classes, graph
        self.target = Target("this device", cuda, impl, graph, {})
        self.correction = 1.0
        self._known: dict[Rung, tuple[int, Peak]] = {}

    def bytes(self, rung: Rung) -> int:
        """What the search holds at the peak of its dearest sample, everything between steps included."""
        return int(self.plain(rung)[0] * self.correction)

    def plain(self, rung: Rung) -> tuple[int, Peak]:
        """The same without correction, and the peak of requested bytes that it came from."""
        if rung not in self._known:
            self._known[rung] = self._predict(rung)
        return self._known[rung]

    def _predict(self, rung: Rung) -> tuple[int, Peak]:
        """Of two micro-batches where there are more: the third finds what the second found."""
        config = self.config_on(rung)
        probe = SearchProbe(config, self.target, classes=self.classes)
        peak, held_bytes = probe.held(probe.trace(config))
        return held_bytes + self.rest_bytes(rung), peak

    def rest_bytes(self, rung: Rung) -> int:
        """Of the images and labels of a step's batch that `config_on` leaves out, and of batches made ahead on CUDA."""
        config = self.config
        value_bytes = getattr(torch, config.dtype).itemsize
        image_bytes = 3 * config.image**2 * value_bytes
        copies = 2 if self.graph else 1
        pool_bytes = device_pool_bytes(config, config.batch, value_bytes) if self.target.cuda else 0
        return pool_bytes + copies * (config.batch - self.config_on(rung).batch) * (image_bytes + LABEL_BYTES)

    def config_on(self, rung: Rung) -> SearchConfig:
        """The configuration of a search that runs at most two micro-batches of this rung's size."""
        changes: dict[str, Any] = {"k": rung.k, "k_schedule": "", "policy": ",".join(rung.policies)}
        if rung.accumulate > 1:
            changes |= {"batch": 2 * rung.images(self.config.batch), "accumulate": 2}
        if rung.k == 1 and resolved_teacher(self.config) == "ensemble":
            changes["teacher"] = "none"
        return dataclasses.replace(self.config, **changes)


@dataclass(frozen=True, slots=True)
class Descent:
    """One way down the ladder, and why it was taken."""

    before: Rung
    after: Rung
    why: str

    def __str__(self) -> str:
        return f"{self.after} instead of {self.before}: {self.why}"


class Guard:
    """Keeps a search within its budget.

    Args:
        learner: whose rung it changes.
        forecast: of its steps.
        budget: as the user wrote it, None for none: then only memory that runs out takes it down.
        read_room: the device's memory now.
        fewest: images of a micro-batch at least (see `rung.fewest_images`).
        context_bytes: what the driver took for this process, outside the allocator.
        say: told of each descent, after it was taken.

    Raises:
        BudgetError: the budget is above what the device has, or has free; not with `resumed`.
    """

    def __init__(
        self, learner: Learner, forecast: Forecast, budget: Budget | None, read_room: ReadRoom, *,
        fewest: int, say: Callable[[Descent], None], context_bytes: int = 0,
        resumed: bool = False,
    ) -> None:  # fmt: skip
        self.learner, self.forecast, self.budget, self.say = learner, forecast, budget, say
        self.fewest, self.context_bytes = fewest, context_bytes
        self._read_room = read_room
        self._measured: dict[Rung, int] = {}
        self._device = learner.net.classifier.weight.device
        room = read_room()
        could_have = min(room.total_bytes, room.free_bytes + self._held_bytes() + context_bytes)
        ask = Budget() if budget is None else budget
        take = ask.asked_bytes if resumed else ask.bytes_on
        # `auto` is what is free, now and later; a share is of the whole device.
        self.asked_bytes = take(total_bytes=room.total_bytes, free_bytes=could_have)
        if budget is not None and (budget.size_bytes or budget.percent):
            self._cap(min(1.0, (self.asked_bytes - context_bytes) / room.total_bytes))

    def _cap(self, fraction: float) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(max(0.0, fraction), self._device)

    def limit_bytes(self) -> int:
        """What the search's allocator may hold in the step to come."""
        free_bytes = self._read_room().free_bytes + self._held_bytes()
        if self.budget is None or (self.budget.size_bytes is None and self.budget.percent is None):
            return free_bytes
        return min(self.asked_bytes - self.context_bytes, free_bytes)

    def needed_bytes(self, rung: Rung) -> int:
        """The most that a step on this rung is known or predicted to hold, with the K of the schedule."""
        rung = self.learner.standing(rung)
        return max(self.forecast.bytes(rung), self._measured.get(rung, 0))

    def measured(self, step_bytes: int) -> None:
        """Take note of a step's measured peak: images and all that lived in it but not between steps."""
        rung = self.learner.standing()
        if self._device.type == "cuda":
            held_bytes = torch.cuda.max_memory_reserved(self._device)
        else:
            held_bytes = self.learner.state_bytes() + step_bytes
        self._measured[rung] = max(held_bytes, self._measured.get(rung, 0))

    def _held_bytes(self) -> int:
        """What the search's allocator holds now."""
        if self._device.type == "cuda":
            return torch.cuda.memory_reserved(self._device)
        return self.learner.state_bytes()

    def before_step(self) -> None:
        """Step down as far as the step to come needs it, on the process of the search that needs it most.

        Raises:
            BudgetError: nothing fits, with the three numbers.
            FollowedError: nothing fits another process's budget.
        """
        if self.budget is None:
            return
        limit_bytes, rung = self.limit_bytes(), self.learner.rung
        needed_bytes, below = self.needed_bytes(rung), self._below(rung)
        down = 0 if needed_bytes <= limit_bytes else self._steps_down(below, limit_bytes)
        deepest = self.learner.ranks.most("the budget", down)
        if down > len(below):
            raise self._nothing_fits(limit_bytes)
        if deepest > len(below):
            raise FollowedError("nothing fits another process's budget")
        if deepest:
            why = f"needs {in_words(needed_bytes)}, {in_words(limit_bytes)} left of the budget"
            self._descend(below[deepest - 1], why if deepest == down else "another process of the search needs it")

    def _steps_down(self, below: list[Rung], limit_bytes: int) -> int:
        """How many of the rungs below to take, one more than there are where none fits."""
        # Each rung takes less than the one above, so the first that fits is found by halving.
        low, high = 0, len(below)
        while low < high:
            middle = (low + high) // 2
            if self.needed_bytes(below[middle]) <= limit_bytes:
                high = middle
            else:
                low = middle + 1
        return low + 1

    def attempt(self, take: Callable[[], Result]) -> Result:
        """take(), again on the next rung where memory ran out in it.

        `take` may change alpha before it fails, the weights only at its end; alpha is put back.

        Raises:
            BudgetError: it ran out on the last rung.
        """
        before = self.learner.alpha_state()
        while True:
            try:
                return take()
            except (RuntimeError, MemoryError) as error:
                below = [
                    rung for rung in self._below(self.learner.rung)
                    if self.learner.standing(rung) != self.learner.standing()
                ]  # fmt: skip
                doubtful = any(words in str(error) for words in DOUBTFUL_TEXTS)
                if not is_out_of_memory(error) or (doubtful and not below):
                    raise
                text = _sentence(error)
            # Outside the except block: the error's frames hold the failed step's tensors.
            self.learner.drop_gradients()
            self.learner.put_back(before)
            release(self._device)
            if not below:
                raise self._nothing_fits(self.limit_bytes())
            self._descend(below[0], f"memory ran out ({text})")

    def _descend(self, rung: Rung, why: str) -> None:
        descent = Descent(self.learner.standing(), self.learner.standing(rung), why)
        self.learner.stand_on(rung)
        release(self._device)
        self.say(descent)

    def _below(self, rung: Rung) -> list[Rung]:
        batch, below = self.learner.config.batch, []
        lower = rung.lower(batch, self.fewest)
        while lower is not None:
            below.append(lower)
            lower = lower.lower(batch, self.fewest)
        return below

    def _nothing_fits(self, limit_bytes: int) -> BudgetError:
        last = [self.learner.rung, *self._below(self.learner.rung)][-1]
        needed_bytes = self.needed_bytes(last) + self.context_bytes
        return BudgetError(
            f"not even {last} fits", asked_bytes=self.asked_bytes, free_bytes=limit_bytes + self.context_bytes,
            needed_bytes=needed_bytes,
            next="msgdas search --resume goes on from the last checkpoint once more is free; "
            "or search with fewer channels or layers",
        )  # fmt: skip
