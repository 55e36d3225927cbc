"""What a configuration says of the input pipeline: who decodes, which crops, which colours.

Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from .config import SearchConfig
    from .train_config import TrainConfig

# Data sets whose images are files or records, decoded while the search runs.
ENCODED = ("imagefolder:", "webdataset:", "tfrecord:", "recordio:")
# From this side on, encoded images get random-resized crops unless the configuration says otherwise (ours): four
# pixels around a larger image change little.
RESIZED_FROM = 64
LOADERS = ("torch", "dali")
# Pixels of a photograph while it is decoded: ImageNet's mean size (ours).
DECODED_PIXELS = 500 * 375


def encoded(config: SearchConfig | TrainConfig) -> bool:
    """Whether the images are decoded while the search runs."""
    return config.data.startswith(ENCODED)


def resized(config: SearchConfig | TrainConfig) -> bool:
    """Whether training images are random-resized crops, not shifted by some pixels."""
    if config.crop == "auto":
        return encoded(config) and config.loader != "memory" and config.image >= RESIZED_FROM
    return config.crop == "resized"


def jitter_of(config: SearchConfig | TrainConfig) -> tuple[float, float, float, float] | None:
    """Strengths of brightness, contrast, saturation and hue; None for none.

    Raises:
        ConfigError: for anything but four numbers, or none.
    """
    if not config.jitter:
        return None
    try:
        b, c, s, h = (float(part) for part in config.jitter.split(","))
    except ValueError:
        b = c = s = h = -1.0
    if not (all(0 <= strength <= 10 for strength in (b, c, s)) and 0 <= h <= 0.5):
        raise ConfigError(
            "jitter is four strengths: brightness, contrast, saturation, hue", got=repr(config.jitter),
            allowed="0 to 10 each, the hue 0 to 0.5", next="--set jitter=0.4,0.4,0.4,0.2",
        )  # fmt: skip
    return b, c, s, h


def check_inputs(config: SearchConfig | TrainConfig) -> None:
    """Raise ConfigError for keys of the input pipeline that do not go together."""
    jitter = jitter_of(config)
    shown = "resized" if resized(config) else "pad"
    if shown == "resized" and not encoded(config):
        raise ConfigError(
            "random-resized crops are cut from images that are decoded while the search runs", got=config.data,
            allowed=" ".join(f"{name}..." for name in ENCODED), next="--set crop=pad",
        )  # fmt: skip
    if shown == "pad" and config.loader in LOADERS:
        raise ConfigError(
            f"loader {config.loader} makes random-resized crops of encoded images",
            got=f"{config.data}, image {config.image}, crop {config.crop}", allowed="crop resized, or loader auto",
            next="--set crop=resized" if encoded(config) else "--set loader=auto",
        )  # fmt: skip
    if shown == "resized" and config.loader == "memory":
        raise ConfigError(
            "random-resized crops need a decoder", got="loader memory", allowed=f"auto, {', '.join(LOADERS)}",
            next="--set loader=auto",
        )  # fmt: skip
    if shown == "resized" and config.cutout:
        raise ConfigError(
            "cutout goes with padded crops", got=f"cutout {config.cutout}, random-resized crops",
            allowed="one of them", next="--set cutout=0",
        )  # fmt: skip
    if shown == "pad" and jitter is not None:
        raise ConfigError(
            "jitter goes with random-resized crops", got=f"jitter {config.jitter}, padded crops",
            allowed="crop resized", next="--set jitter=",
        )  # fmt: skip


def device_pool_bytes(config: SearchConfig, batch: int, value_bytes: int) -> int:
    """What batches made ahead take of a CUDA device where DALI decodes on it; 0 where nothing is decoded there.

    Counted: `prefetch` finished batches of both halves, one more that is being finished in float32, DALI's uint8 pixels
    of it and the copy of them, and its decoded photographs. What nvJPEG takes besides was not measured.

    Args:
        batch: images of a step that this process decodes.
        value_bytes: of one value of the finished images.
    """
    if not resized(config) or config.loader not in ("auto", "dali"):
        return 0
    values = 3 * config.image**2
    ahead_bytes = 2 * config.prefetch * values * value_bytes
    return batch * (ahead_bytes + values * (value_bytes + 4 + 2) + 3 * DECODED_PIXELS)
