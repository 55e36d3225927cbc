"""What is wrong or odd about one image file, and worker processes that look at many. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import signal
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

# File types that all loaders decode, with their endings.
TYPES = {
    "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "PPM": (".ppm", ".pgm"), "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"), "WEBP": (".webp",),
}  # fmt: skip
# Kept, but worth a look: decoded it takes more than 150 MB (ours).
LARGE_PIXELS = 50_000_000
ORIENTATION = 274
# What Pillow says of a file that ends too early.
EARLY_ENDS = ("truncated", "reached eof", "unexpected end", "premature end", "could not create decoder")
# Files that a worker gets at once.
CHUNK = 16
# Tries for a file whose worker died or hung: the cause may lie elsewhere.
TRIES = 2

BAD = (
    "empty", "truncated", "not an image", "another type", "damaged", "too large", "unreadable", "worker died",
    "took too long",
)  # fmt: skip
ODD = ("gray", "CMYK", "EXIF rotation", "large", "another ending")


class Verdict(NamedTuple):
    """On one file.

    Attributes:
        bad: one of `BAD`, or empty for a file that every loader can decode.
        detail: what the decoder said of a bad file, or of which type a file with another ending is.
        odd: those of `ODD` that hold.
        digest: 128-bit BLAKE2b of the content, in hexadecimal; empty where it was not read.
    """

    bad: str
    detail: str
    odd: tuple[str, ...]
    digest: str


def examine(path: str) -> Verdict:
    """Read and decode a whole file. Raises nothing: what cannot be read is bad.

    JPEGs are decoded gray at an eighth of their size, which reads all of the compressed stream and so sees a cut as the
    full size does, at half its cost.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return Verdict("unreadable", error.strerror or str(error), (), "")
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    if not content:
        return Verdict("empty", "0 bytes", (), digest)
    try:
        with warnings.catch_warnings():
            # Of Pillow, about EXIF data and sizes that are judged here.
            warnings.simplefilter("ignore")
            return _decoded(path, content, digest)
    except Image.DecompressionBombError as error:
        return Verdict("too large", str(error), (), digest)
    except UnidentifiedImageError:
        return Verdict("not an image", f"begins with {content[:8].hex()}", (), digest)
    # Decoders raise whatever they like for bytes that they did not expect.
    except Exception as error:
        said = str(error) or type(error).__name__
        early = any(words in said.lower() for words in EARLY_ENDS)
        return Verdict("truncated" if early else "damaged", said, (), digest)


def _decoded(path: str, content: bytes, digest: str) -> Verdict:
    with Image.open(io.BytesIO(content)) as opened:
        found = opened.format or "unknown"
        if found not in TYPES:
            return Verdict("another type", found, (), digest)
        mode, pixels = opened.mode, opened.width * opened.height
        opened.draft("L", (1, 1))
        turned = opened.getexif().get(ORIENTATION, 1) != 1
        picture = ImageOps.exif_transpose(opened)
    if mode in ("I", "F"):
        return Verdict("damaged", f"pixels of mode {mode}", (), digest)
    if not mode.startswith("I;16"):
        picture.crop((0, 0, 1, 1)).convert("RGB")
    another = not path.lower().endswith(TYPES[found])
    holds = (
        mode in ("1", "L", "LA") or mode.startswith("I;16"),
        mode == "CMYK",
        turned,
        pixels > LARGE_PIXELS,
        another,
    )
    odd = tuple(name for name, true in zip(ODD, holds, strict=True) if true)
    return Verdict("", found if another else "", odd, digest)


def _work(pipe: Connection) -> None:
    """Answer chunks of paths with one verdict each, until the other end is closed."""
    # Ctrl-C is the parent's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        while True:
            for path in pipe.recv():
                pipe.send(examine(path))
    except (EOFError, OSError):
        return


class _Worker:
    """A process with the paths that it has not answered yet, the one in work first."""

    def __init__(self) -> None:
        # Not forked: a fork of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.open: deque[str] = deque()
        self.since = time.monotonic()
        self.answered = False

    def take(self, paths: list[str]) -> None:
        self.open.extend(paths)
        self.since = time.monotonic()
        # A worker that died meanwhile is noticed when its answer is waited for.
        try:
            self.pipe.send(paths)
        except OSError:
            return

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Examiners:
    """Worker processes that examine files; one that dies or hangs is replaced, and its file named.

    Args:
        workers: processes.
        patience_s: longest time for one file; a process has as long again for its start.

    Use as a context manager: leaving it ends the processes.
    """

    def __init__(self, workers: int, *, patience_s: float = 120.0) -> None:
        self.patience_s, self._count = patience_s, workers
        self._workers: list[_Worker] = []
        self._failures: dict[str, int] = {}

    def __enter__(self) -> Examiners:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def verdicts(self, paths: Iterable[str]) -> Iterator[tuple[str, Verdict]]:
        """Each path with its verdict, in the order in which they come."""
        waiting, again = iter(paths), deque[str]()
        while True:
            self._feed(waiting, again)
            busy = [worker for worker in self._workers if worker.open]
            if not busy:
                return
            ready = set(wait([worker.pipe for worker in busy], timeout=min(1.0, self.patience_s)))
            for worker in busy:
                if worker.pipe in ready:
                    yield from self._answers(worker, again)
                else:
                    allowed_s = self.patience_s * (1 if worker.answered else 2)
                    if time.monotonic() - worker.since > allowed_s:
                        yield from self._lost(worker, again, "took too long", f"over {self.patience_s:g} s")

    def _feed(self, waiting: Iterator[str], again: deque[str]) -> None:
        while True:
            idle = next((worker for worker in self._workers if not worker.open), None)
            if idle is None and len(self._workers) == self._count:
                return
            # A file that was the last of a worker goes alone, so that it cannot take others with it.
            chunk = [again.popleft()] if again else list(islice(waiting, CHUNK))
            if not chunk:
                return
            if idle is None:
                idle = _Worker()
                self._workers.append(idle)
            idle.take(chunk)

    def _answers(self, worker: _Worker, again: deque[str]) -> Iterator[tuple[str, Verdict]]:
        try:
            while worker.open and worker.pipe.poll():
                verdict = worker.pipe.recv()
                worker.since, worker.answered = time.monotonic(), True
                yield worker.open.popleft(), Verdict(*verdict)
        except (EOFError, OSError):
            worker.process.join()
            yield from self._lost(worker, again, "worker died", f"exit code {worker.process.exitcode}")

    def _lost(self, worker: _Worker, again: deque[str], kind: str, detail: str) -> Iterator[tuple[str, Verdict]]:
        """Put a new worker in the place of one, and its files back; the one it was at is given up after two tries."""
        worker.stop()
        self._workers.remove(worker)
        path, *rest = worker.open
        again.extend(rest)
        self._failures[path] = self._failures.get(path, 0) + 1
        if self._failures[path] < TRIES:
            again.append(path)
        else:
            yield path, Verdict(kind, detail, (), "")
