"""A memory timeline from a thread of its own: a peak between two lines of Python does not go unseen.

The native thread (native/sampler.cpp) samples while Python code holds the interpreter's lock; without the library a
Python thread does, whose samples can be some 5 ms apart then. The achieved rate and the largest gap stand beside
every peak, so that a reader knows which spikes could have been missed.
"""

from __future__ import annotations

import ctypes
import re
import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from .device import process_rss_bytes
from .errors import ProfileError
from .nvml import UsedMemory, explained

LIBRARY_VERSION = 1
# 2 kHz sees 2 ms spikes with room for a late sample; 2^18 samples are two minutes of it, in 6 MiB.
RATE_HZ = 2000.0
CAPACITY = 1 << 18

Samples = tuple["array[int]", "array[int]"]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Samples in order of time.

    Attributes:
        times_ns: of `time.monotonic_ns`'s clock.
        bytes: resident memory of this process, or used memory of the device.
        source: `process memory` or `NVML GPU-…`.
        thread: `native thread` or `Python thread`.
        peak_bytes: the highest sample, also of those that were overwritten; 0 without samples.
        lost: samples overwritten before they were read.
        failures: reads that the source did not answer.
    """

    times_ns: array[int]
    bytes: array[int]
    source: str
    thread: str
    peak_bytes: int
    lost: int = 0
    failures: int = 0

    @property
    def rate_hz(self) -> float:
        """Samples per second as achieved, 0 for fewer than two."""
        if len(self.times_ns) < 2:
            return 0.0
        return (len(self.times_ns) - 1) * 1e9 / (self.times_ns[-1] - self.times_ns[0])

    @property
    def largest_gap_ms(self) -> float:
        """The longest time without a sample: a spike shorter than this may have been missed."""
        return max((after - before for before, after in pairwise(self.times_ns)), default=0) / 1e6

    def during(self, start_ns: int, end_ns: int) -> Timeline:
        """The part of a phase, bounds included; nothing is known there of lost samples."""
        part = slice(bisect_left(self.times_ns, start_ns), bisect_right(self.times_ns, end_ns))
        values = self.bytes[part]
        return replace(self, times_ns=self.times_ns[part], bytes=values, peak_bytes=max(values, default=0), lost=0)


class MemorySampler:
    """Context manager that samples from entering to leaving; `timeline` holds the result then.

    Args:
        gpu_uuid: of a GPU or a MIG instance; None samples a process's resident memory.
        pid: of another process, sampled by the Python thread; None for this one.
        rate_hz: samples per second to aim for.
        capacity: samples kept; the oldest are overwritten.
        library: the native library; None takes the Python thread.

    Raises:
        ProfileError: on entering, NVML cannot be asked or has no such device, or there is no such process.
    """

    def __init__(
        self,
        gpu_uuid: str | None = None,
        *,
        pid: int | None = None,
        rate_hz: float = RATE_HZ,
        capacity: int = CAPACITY,
        library: Path | None,
    ) -> None:
        assert rate_hz > 0 and capacity > 0
        assert gpu_uuid is None or pid is None
        self._source = f"NVML {gpu_uuid}" if gpu_uuid else "process memory" if pid is None else f"process {pid}"
        self._thread: _Thread
        if library and pid is None:
            self._thread = _NativeThread(_load(library), gpu_uuid, rate_hz, capacity)
        else:
            self._thread = _PythonThread(gpu_uuid, pid, rate_hz, capacity)
        self._timeline: Timeline | None = None

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.stop()
        self._timeline = self.read()
        self._thread.close()

    @property
    def timeline(self) -> Timeline:
        """All samples that were kept, or those since the last `read`."""
        assert self._timeline is not None, "still sampling"
        return self._timeline

    def read(self) -> Timeline:
        """The samples since the last `read`, while sampling goes on: for runs longer than the capacity."""
        (times_ns, values), lost = self._thread.drain()
        return Timeline(
            times_ns, values, self._source, self._thread.name, self._thread.peak_bytes, lost, self._thread.failures
        )


@cache
def native_library() -> Path | None:
    """The sampler's library of this installation, None where it has none, or one of another version."""
    spec = find_spec("._sampler", __package__)
    if spec is None or spec.origin is None:
        return None
    try:
        version = ctypes.CDLL(spec.origin).msgdas_sampler_version()
    except (OSError, AttributeError):
        # Built for another system, or no sampler at all.
        return None
    return Path(spec.origin) if version == LIBRARY_VERSION else None


class _Thread(Protocol):
    """What samples: `drain` gives the new samples and the number that was lost before them."""

    name: str

    @property
    def peak_bytes(self) -> int: ...
    @property
    def failures(self) -> int: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def drain(self) -> tuple[Samples, int]: ...


class _Counts(ctypes.Structure):
    _fields_ = (("written", ctypes.c_uint64), ("failures", ctypes.c_uint64), ("peak_bytes", ctypes.c_uint64))


@cache
def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    handle, number, numbers = ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64)
    library.msgdas_sampler_open.argtypes = (
        ctypes.c_char_p,
        ctypes.c_double,
        number,
        ctypes.c_char_p,
        ctypes.c_size_t,
    )
    library.msgdas_sampler_open.restype = handle
    library.msgdas_sampler_copy.argtypes = (handle, numbers, number, numbers, numbers)
    library.msgdas_sampler_copy.restype = number
    library.msgdas_sampler_count.argtypes = (handle, ctypes.POINTER(_Counts))
    library.msgdas_sampler_count.restype = None
    library.msgdas_sampler_start.argtypes = (handle,)
    for function in (library.msgdas_sampler_stop, library.msgdas_sampler_close):
        function.argtypes, function.restype = (handle,), None
    return library


class _NativeThread:
    name = "native thread"

    def __init__(self, library: ctypes.CDLL, gpu_uuid: str | None, rate_hz: float, capacity: int) -> None:
        self._library, self._capacity = library, capacity
        self._arguments = (gpu_uuid.encode() if gpu_uuid else None, rate_hz, capacity)
        self._handle: int | None = None
        self._next = ctypes.c_uint64(0)
        self._last_counts = _Counts()

    @property
    def peak_bytes(self) -> int:
        return self._counts().peak_bytes

    @property
    def failures(self) -> int:
        return self._counts().failures

    def start(self) -> None:
        error = ctypes.create_string_buffer(200)
        self._handle = self._library.msgdas_sampler_open(*self._arguments, error, len(error))
        if not self._handle:
            text = error.value.decode()
            code = re.search(r"(\S+) failed with NVML code (\d+)", text)
            what, remedy = explained(int(code[2]), code[1]) if code else (text, "msgdas doctor")
            raise ProfileError(f"memory cannot be sampled: {what}", next=remedy)
        if self._library.msgdas_sampler_start(self._handle):
            self.close()
            raise ProfileError("memory cannot be sampled: the system gives no more threads")

    def stop(self) -> None:
        self._library.msgdas_sampler_stop(self._handle)

    def close(self) -> None:
        self._last_counts = self._counts()
        self._library.msgdas_sampler_close(self._handle)
        self._handle = None

    def drain(self) -> tuple[Samples, int]:
        before = self._next.value
        room = min(self._capacity, self._counts().written - before)
        times_ns, values = array("Q", bytes(8 * room)), array("Q", bytes(8 * room))
        count = 0
        if room:
            kind = ctypes.c_uint64 * room
            count = self._library.msgdas_sampler_copy(
                self._handle,
                ctypes.byref(self._next),
                room,
                kind.from_buffer(times_ns),
                kind.from_buffer(values),
            )
        lost = self._next.value - before - count
        return (times_ns[:count], values[:count]), lost

    def _counts(self) -> _Counts:
        if self._handle is None:
            return self._last_counts
        counts = _Counts()
        self._library.msgdas_sampler_count(self._handle, ctypes.byref(counts))
        return counts


class _PythonThread:
    name = "Python thread"

    def __init__(self, gpu_uuid: str | None, pid: int | None, rate_hz: float, capacity: int) -> None:
        self._gpu_uuid, self._pid, self._period_s = gpu_uuid, pid, 1 / rate_hz
        self._samples: deque[tuple[int, int]] = deque(maxlen=capacity)
        self._written = self._drained = 0
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._read: Callable[[], int | None] = self._read_process
        self._worker = threading.Thread(target=self._run, name="memory sampler", daemon=True)
        self.peak_bytes = self.failures = 0

    def start(self) -> None:
        if self._gpu_uuid:
            self._read = self._stack.enter_context(UsedMemory(self._gpu_uuid)).read
        else:
            process_rss_bytes(self._pid)
        self._sample()
        self._worker.start()

    def _read_process(self) -> int | None:
        try:
            return process_rss_bytes(self._pid)
        except ProfileError:
            return None

    def stop(self) -> None:
        self._stopping.set()
        self._worker.join()
        self._sample()

    def close(self) -> None:
        self._stack.close()

    def drain(self) -> tuple[Samples, int]:
        with self._lock:
            kept = list(self._samples)
            self._samples.clear()
            lost = self._written - self._drained - len(kept)
            self._drained = self._written
        return (array("Q", (at_ns for at_ns, _ in kept)), array("Q", (value for _, value in kept))), lost

    def _run(self) -> None:
        due = time.monotonic() + self._period_s
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            self._sample()
            due = max(due + self._period_s, time.monotonic())

    def _sample(self) -> None:
        value = self._read()
        if value is None:
            self.failures += 1
            return
        with self._lock:
            self._samples.append((time.monotonic_ns(), value))
            self._written += 1
        self.peak_bytes = max(self.peak_bytes, value)
