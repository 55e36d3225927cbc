"""NVIDIA DALI as the decoder: the only module that imports it.

Windows, flips and colours are drawn by `crops`; DALI only decodes and cuts what it is told, so that it has no state to
keep. Decoding is fused with the cut: rows below a window are not decoded. On CUDA the JPEGs are decoded, resized and
flipped there (`mixed`) and the batch stays there. Without a GPU its CPU decoder runs, and PyTorch resizes: DALI's own
resize takes twice its time there.

Shape suffixes: B images, H rows, W columns, S side in pixels.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..errors import DataError
from .crops import Views
from .decoding import Picture, fitted, pixels_of
from .workers import Workers

INSTALL = "pip install 'msgdas[dali]'"


def why_not(device: torch.device) -> str | None:
    """Why DALI cannot feed a search on that device, in a clause; None where it can. Imports it."""
    if not sys.platform.startswith("linux"):
        return "DALI is made for Linux"
    try:
        if importlib.util.find_spec("nvidia.dali") is None:
            return "DALI is not installed"
        from nvidia import dali
    except (ImportError, OSError) as error:
        return f"DALI cannot be loaded ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    if device.type != "cuda":
        return None
    built, running = str(dali.__cuda_version__)[:2], (torch.version.cuda or "").split(".")[0]
    return None if built == running else f"DALI was built for CUDA {built}, PyTorch runs CUDA {running}"


class DaliDecoder:
    """Decodes, cuts, resizes and flips by a DALI pipeline that is fed from outside.

    Args:
        image: side S.
        batch: images of the largest batch; a larger one is done in parts.
        workers: as many threads as DALI takes; they resize what it decoded on a CPU.
        device: where images are decoded and stay: the CPU or a CUDA device.

    Raises:
        DataError: DALI is missing, or was built for another CUDA.
    """

    name = "dali"

    def __init__(self, image: int, *, batch: int, workers: Workers, device: torch.device) -> None:
        reason = why_not(device)
        if reason is not None:
            raise DataError(
                f"loader dali cannot run: {reason}", got="loader dali", allowed="auto, torch, or DALI for this CUDA",
                next=f"{INSTALL}, or --set loader=torch",
            )  # fmt: skip
        self.image, self.batch, self.workers, self.device = image, batch, workers, device
        # A pipeline runs one batch at a time.
        self._lock = threading.Lock()
        self._pipeline: Any = None

    def decode(self, pictures: Sequence[Picture], views: Views) -> Tensor:
        parts = []
        for start in range(0, len(pictures), self.batch):
            part = slice(start, start + self.batch)
            parts.append(self._run(pictures[part], views.windows_B4[part], views.flips_B[part]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def close(self) -> None:
        """Give the pipeline's threads and memory back; `decode` would make a new one."""
        with self._lock:
            self._pipeline = None

    def _run(
        self, pictures: Sequence[Picture], windows_B4: NDArray[np.int64], flips_B: NDArray[np.bool_]
    ) -> Tensor:  # fmt: skip
        fed = [_fed(picture, window) for picture, window in zip(pictures, windows_B4, strict=True)]
        try:
            return self._decoded(fed, flips_B)
        except RuntimeError as error:
            # DALI names no file, and takes some damage for an error that Pillow does not mind.
            fed = []
            for picture, window in zip(pictures, windows_B4, strict=True):
                pixels_HWC = picture.pixels_HWC if picture.jpeg is None else pixels_of(picture.jpeg, picture.name)
                assert pixels_HWC is not None
                fed.append(_cut(pixels_HWC, window))
            try:
                return self._decoded(fed, flips_B)
            except RuntimeError:
                text = " ".join(str(error).split())
                raise DataError(
                    f"DALI cannot decode a batch with {pictures[0].name}", got=text[:200], allowed="a running DALI",
                    next="--set loader=torch",
                ) from None  # fmt: skip

    def _decoded(
        self, fed: Sequence[tuple[NDArray[np.uint8], NDArray[np.int64]]], flips_B: NDArray[np.bool_]
    ) -> Tensor:  # fmt: skip
        """uint8 [B, S, S, 3]; what DALI raises is a RuntimeError, and the next call has a new pipeline then."""
        with self._lock:
            if self._pipeline is None:
                self._pipeline = _pipeline(self.image, self.batch, self.workers.count, self.device)
            windows_B4 = np.stack([window for _, window in fed])
            try:
                self._pipeline.feed_input("files", [content for content, _ in fed])
                self._pipeline.feed_input("starts", np.ascontiguousarray(windows_B4[:, :2]))
                self._pipeline.feed_input("shapes", np.ascontiguousarray(windows_B4[:, 2:]))
                if self.device.type == "cuda":
                    self._pipeline.feed_input("flips", flips_B.astype(np.int32))
                (shown,) = self._pipeline.run()
                if self.device.type == "cuda":
                    # A copy: DALI writes the next batch over this one.
                    return from_dlpack(shown.as_tensor()).clone()
                return self._fitted(shown, flips_B)
            except BaseException:
                self._pipeline = None
                raise

    def _fitted(self, parts: Any, flips_B: NDArray[np.bool_]) -> Tensor:
        """Windows of a CPU pipeline, resized and flipped."""
        pixels_BHWC = torch.empty(len(flips_B), self.image, self.image, 3, dtype=torch.uint8)

        def one(number: int) -> None:
            pixels_BHWC[number] = fitted(from_dlpack(parts[number]), self.image, flip=bool(flips_B[number]))

        self.workers.map(one, range(len(flips_B)), lambda number: f"image {number} of a batch")
        return pixels_BHWC


def _pipeline(image: int, batch: int, threads: int, device: torch.device) -> Any:
    from nvidia import dali
    from nvidia.dali import fn, types

    on_gpu = device.type == "cuda"
    gpu = torch.cuda.current_device() if on_gpu and device.index is None else device.index
    pipeline = dali.Pipeline(
        batch_size=batch, num_threads=threads, device_id=gpu if on_gpu else None,
        prefetch_queue_depth=1, exec_pipelined=False, exec_async=False,
    )  # fmt: skip
    with pipeline:
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
        starts = fn.external_source(name="starts", dtype=types.INT64, ndim=1)
        shapes = fn.external_source(name="shapes", dtype=types.INT64, ndim=1)
        shown = fn.decoders.image_slice(
            files, starts, shapes, axes=(0, 1), device="mixed" if on_gpu else "cpu", output_type=types.RGB
        )
        if on_gpu:
            flips = fn.external_source(name="flips", dtype=types.INT32, ndim=0)
            shown = fn.resize(shown, size=(image, image), interp_type=types.INTERP_LINEAR, antialias=True)
            shown = fn.flip(shown, horizontal=flips.gpu())
        pipeline.set_outputs(shown)
    pipeline.build()
    return pipeline


def _fed(picture: Picture, window_4: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A picture as DALI takes it, and the window of that."""
    if picture.jpeg is not None:
        return np.frombuffer(picture.jpeg, dtype=np.uint8), window_4
    assert picture.pixels_HWC is not None
    return _cut(picture.pixels_HWC, window_4)


def _cut(pixels_HWC: NDArray[np.uint8], window_4: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The window of decoded pixels as a PPM file, so that all images of a batch go the same way."""
    top, left, height, width = window_4.tolist()
    head = np.frombuffer(f"P6 {width} {height} 255\n".encode(), dtype=np.uint8)
    pixels = pixels_HWC[top : top + height, left : left + width].reshape(-1)
    return np.concatenate([head, pixels]), np.array([0, 0, height, width], dtype=np.int64)
