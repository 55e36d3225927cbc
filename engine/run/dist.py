"""The processes of one search or training, as torchrun starts them: who they are, and what they tell each other.

A process is a *rank*, 0 the first of *world*. Each takes its share of every batch; gradients, losses and flags are
brought together here, so that all ranks take the same step, stop at the same step and step down together. What the
host says goes over gloo, also where gradients go over NCCL, so that no rank waits for its device to say it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...profiles.errors import ProfileError
from ..errors import ConfigError, EngineError, FollowedError, RanksError
from ..images.batches import Shard
from ..settings.config import SearchConfig
from ..settings.place import Place
from ..supernet.exhausted import is_out_of_memory

Result = TypeVar("Result")
# Until a configuration says otherwise, and as long as a search that begins waits for its last process.
TIMEOUT_S = 600
# torchrun ends all processes once one has ended: the one that has something to say comes first (ours).
LINGER_S = 1.0
# What a rank says at a meeting: all is well, its memory ran out, it stops.
WELL, EXHAUSTED, FAILED = range(3)


class PeerMemoryError(RuntimeError):
    """Another rank ran out of memory: this one steps down with it. The text says so as libraries do."""


class Meeting:
    """What one rank says at the end of `Ranks.together`.

    Attributes:
        equal: a number that must be the same on all ranks, 0 for none.
    """

    def __init__(self) -> None:
        self.equal = 0


class Ranks:
    """This process among those of its run; a context manager that joins and leaves them.

    A process that is alone says nothing to anybody, and changes no number.

    Args:
        place: see `Place`.
        timeout_s: how long a rank waits for another.
        command: `search` or `train`, which goes on with the run.
    """

    def __init__(self, place: Place | None = None, *, timeout_s: int = TIMEOUT_S, command: str = "search") -> None:
        self.place, self.timeout_s = place or Place(), timeout_s
        self._next = f"msgdas {command} --resume RUN, also with fewer processes; its last checkpoint is good"
        self.rank, self.world = self.place.rank, self.place.world
        self._group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this rank writes the run folder and speaks to the user."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world == 1

    def shard(self) -> Shard:
        """This rank's part of every batch."""
        return Shard(self.rank, self.world)

    def __enter__(self) -> Self:
        if not self.alone:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            self._attempt(
                "the start", lambda: dist.init_process_group(backend, timeout=timedelta(seconds=self.timeout_s))
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.alone:
            return
        if error is None:
            dist.destroy_process_group()
        elif isinstance(error, FollowedError):
            time.sleep(LINGER_S)
        # After another error the connections stay open until the process ends, when it has said what is wrong.

    def wait_for(self, timeout_s: int) -> None:
        """From now on wait that long for another rank."""
        self.timeout_s = timeout_s
        if not self.alone:
            limit = timedelta(seconds=timeout_s)
            group: Any = self._attempt("the start", lambda: dist.new_group(timeout=limit))
            self._group = group

    def device(self, asked: torch.device) -> torch.device:
        """The device of this rank: a GPU of its own where `cuda` was asked for.

        Raises:
            ConfigError: for more ranks on this machine than it has GPUs.
        """
        if self.alone or asked.type != "cuda":
            return asked
        count = torch.cuda.device_count()
        if self.place.local_world > count:
            raise ConfigError(
                "every process needs a GPU of its own", got=f"{self.place.local_world} processes, {count} GPUs",
                allowed=f"1 to {count} per machine", next=f"torchrun --nproc-per-node {max(1, count)}",
            )  # fmt: skip
        device = torch.device("cuda", self.place.local_rank)
        torch.cuda.set_device(device)
        return device

    def share_of_processors(self, count: int) -> int:
        """CPU threads of each process of this machine, one at least."""
        return max(1, count // self.place.local_world)

    def digest_of(self, tensors: Iterable[Tensor]) -> int:
        """For `Meeting.equal`: of tensors' shapes and bytes; 0 for a process that is alone, which does not look."""
        if self.alone:
            return 0
        hashed = hashlib.blake2b(digest_size=8)
        for tensor in tensors:
            hashed.update(repr(tuple(tensor.shape)).encode())
            hashed.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest(hashed.digest())

    @contextmanager
    def together(self, what: str) -> Iterator[Meeting]:
        """A block after which all ranks have met, each with what became of its own.

        Raises:
            PeerMemoryError: another rank's memory ran out in it.
            FollowedError: another rank stops; also where rank 0 and this one stop for reasons of their own.
            RanksError: the ranks are not at the same place, or differ in what must be equal.
        """
        meeting = Meeting()
        if self.alone:
            yield meeting
            return
        try:
            yield meeting
        except (RanksError, FollowedError):
            raise
        except Exception as error:
            said = self._meet(what, EXHAUSTED if is_out_of_memory(error) else FAILED)
            if not self.first and said[0][0] == FAILED and isinstance(error, EngineError | ProfileError):
                raise FollowedError(str(error), of=type(error)) from error
            raise
        said = self._meet(what, WELL, meeting.equal)
        for rank, (state, _) in enumerate(said):
            if state == FAILED:
                raise FollowedError(f"process {rank} stopped in {what}")
        for rank, (state, _) in enumerate(said):
            if state == EXHAUSTED:
                raise PeerMemoryError(f"process {rank} ran out of memory")
        others = [str(rank) for rank, (_, equal) in enumerate(said) if equal != said[0][1]]
        if others:
            raise RanksError(
                f"processes differ in {what}", got=f"process {', '.join(others)} unlike process 0",
                allowed="the same configuration, images, weights and draws in all of them",
                next="start the same msgdas with the same command on every machine",
            )  # fmt: skip

    @contextmanager
    def committed(self, what: str) -> Iterator[None]:
        """A block in which memory that runs out ends the run: other ranks have changed their weights already."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if self.alone or not is_out_of_memory(error):
                raise
            raise RanksError(
                f"memory ran out at the end of {what}", got=str(error).split("\n")[0], next=self._next
            ) from None

    def _meet(self, what: str, state: int, equal: int = 0) -> list[tuple[int, int]]:
        return [(row[0], row[1]) for row in self._gather(what, (state, equal))]

    def _gather(self, what: str, numbers: Sequence[int]) -> list[list[int]]:
        """What every rank said, by rank; all must be at `what`."""
        mine = torch.tensor((digest(what.encode()), *numbers), dtype=torch.int64)
        every = [torch.empty_like(mine) for _ in range(self.world)]
        self._attempt(what, lambda: dist.all_gather(every, mine, group=self._group))
        rows: list[list[int]] = [row.tolist() for row in every]
        strays = [str(rank) for rank, row in enumerate(rows) if row[0] != rows[0][0]]
        if strays:
            raise RanksError(
                "processes are at different places of the run", next=self._next,
                got=f"process {self.rank} at {what}, process {', '.join(strays)} not where process 0 is",
            )  # fmt: skip
        return [row[1:] for row in rows]

    def most(self, what: str, number: int) -> int:
        """The largest of all ranks' numbers."""
        return max(self.every(what, (number,)))

    def every(self, what: str, numbers: Sequence[int]) -> list[int]:
        """All ranks' numbers, as many from each, in the order of the ranks."""
        return list(numbers) if self.alone else [number for row in self._gather(what, numbers) for number in row]

    def total(self, what: str, values: Sequence[float]) -> list[float]:
        """The sum over all ranks of each value, fp64."""
        if self.alone:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        self.reduce_(sums, what)
        found: list[float] = sums.tolist()
        return found

    def average_(self, tensors: Iterable[Tensor | None], masks: Mapping[int, Tensor] | None = None) -> None:
        """Overwrite tensors by their mean over all ranks (see `Exchange`)."""
        self.exchange(tensors, masks).average()

    def exchange(self, tensors: Iterable[Tensor | None], masks: Mapping[int, Tensor] | None = None) -> Exchange:
        """Tensors packed for one reduction; allocates all that it needs, says nothing yet."""
        return Exchange(self, [] if self.alone else tensors, masks or {})

    def reduce_(self, flat: Tensor, what: str = "the gradients") -> None:
        """The sum over all ranks, in place."""
        self._attempt(what, lambda: dist.all_reduce(flat, group=self._group))

    def share(self, what: str, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, on every rank: plain containers and tensors, as `torch.load` takes with weights_only.

        Raises:
            FollowedError: on the others, where rank 0 could not make it.
        """
        if self.alone:
            return make()
        made, buffer = None, io.BytesIO()
        with self.together(what):
            if self.first:
                made = make()
                torch.save(made, buffer)
        size = torch.tensor(buffer.getbuffer().nbytes, dtype=torch.int64)
        self._attempt(what, lambda: dist.broadcast(size, 0, group=self._group))
        data = torch.frombuffer(bytearray(buffer.getvalue() or bytes(int(size))), dtype=torch.uint8)
        self._attempt(what, lambda: dist.broadcast(data, 0, group=self._group))
        if self.first:
            return made
        return torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)

    def _attempt(self, what: str, act: Callable[[], Result]) -> Result:
        try:
            return act()
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            said = " ".join(str(error).split())
            raise RanksError(
                f"process {self.rank} on {socket.gethostname()} lost another process at {what}",
                got=said[:160], allowed=f"an answer within {self.timeout_s} s", next=self._next,
            ) from None  # fmt: skip


class Exchange:
    """Tensors on their way to their mean over all ranks, in one flat buffer of each dtype.

    Args:
        ranks: who takes part.
        tensors: the same on every rank but for their values; None is left out.
        masks: by place among `tensors`, a mask of 0 and 1 over the first axis (or [] over all): only rows with a 1
            travel, the others must be zero on all ranks. Rows are read on the host.
    """

    def __init__(self, ranks: Ranks, tensors: Iterable[Tensor | None], masks: Mapping[int, Tensor]) -> None:
        self._ranks = ranks
        self._pieces: list[tuple[Tensor, Tensor | None]] = []
        known: dict[int, Tensor] = {}
        for number, tensor in enumerate(tensors):
            mask = masks.get(number)
            if tensor is None or (mask is not None and not mask.dim() and not mask.item()):
                continue
            rows = None
            if mask is not None and mask.dim():
                if id(mask) not in known:
                    known[id(mask)] = mask.flatten().nonzero().flatten()
                rows = known[id(mask)]
            self._pieces.append((tensor, rows))
        self._flat = {
            dtype: torch.cat([_rows(tensor, rows).flatten() for tensor, rows in self._pieces if tensor.dtype == dtype])
            for dtype in dict.fromkeys(tensor.dtype for tensor, _ in self._pieces)
        }

    @property
    def bytes(self) -> int:
        """What travels."""
        return sum(flat.nbytes for flat in self._flat.values())

    @torch.no_grad()
    def average(self) -> None:
        """Reduce and write back. Ranks have equal shares of a batch, so their mean is the batch's."""
        for dtype, flat in self._flat.items():
            self._ranks.reduce_(flat)
            flat.div_(self._ranks.world)
            start = 0
            for tensor, rows in self._pieces:
                if tensor.dtype != dtype:
                    continue
                shape = tensor.shape if rows is None else torch.Size((len(rows), *tensor.shape[1:]))
                piece = flat[start : start + shape.numel()].view(shape)
                start += shape.numel()
                if rows is None:
                    tensor.copy_(piece)
                else:
                    tensor.index_copy_(0, rows, piece)


def _rows(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor.detach() if rows is None else tensor.detach().index_select(0, rows)


def digest(data: bytes) -> int:
    """A hash as a positive int64, never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 2 | 1


def ranks_here(timeout_s: int = TIMEOUT_S, command: str = "search") -> Ranks:
    """This process's place in the environment, not yet joined; the arguments are those of `Ranks`.

    Raises:
        ConfigError: see `Place.of`.
    """
    return Ranks(Place.of(os.environ), timeout_s=timeout_s, command=command)


def share_of(config: SearchConfig, world: int) -> SearchConfig:
    """The part of a search that each of `world` processes takes: its images and its micro-batches of each step.

    Raises:
        ConfigError: for a batch that cannot be shared out.
    """
    if world == 1:
        return config
    accumulate = -(-config.accumulate // world)
    return dataclasses.replace(config, batch=images_of(config.batch, world), accumulate=accumulate)


def images_of(batch: int, world: int) -> int:
    """Images of a step that each of `world` processes takes.

    Raises:
        ConfigError: for a batch that cannot be shared out.
    """
    if world > 1 and (batch % world or batch < 2 * world):
        near = max(2, round(batch / world)) * world
        raise ConfigError(
            "every process takes the same part of a batch, two images or more",
            got=f"batch {batch}, {world} processes", allowed=f"a multiple of {world}, {2 * world} or more",
            next=f"--batch {near}, or another number of processes",
        )  # fmt: skip
    return batch // world
