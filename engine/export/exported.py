"""A trained network as it leaves the project: its weights and what must be known to use them.

Shape suffixes: B batch, C classes.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError, GateError
from ..images.data import load
from ..network.network import Network
from ..run.rundir import METRICS, read_metrics
from ..settings.train_config import TrainConfig
from ..spaces.genotype import Genotype
from ..spaces.space import StemKind
from ..training.trained import data_for, trained

FORMAT = "msgdas-network-1"
# What an error may be beyond fp32's own against fp64, in units of the largest logit less its bias (ours).
SLACK = 1e-5
# And for adding the bias, in units of the largest logit.
ROUNDING = 4 * torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class Exported:
    """A network in evaluation mode on the CPU, in NCHW, without the auxiliary head.

    Attributes:
        name: a Python name; of the files too.
        network: judged weights: the average's where the training kept one.
        genotype, channels, layers, stem: what it is built from, see `counting.count`.
        image: side of its input in pixels.
        classes: class names in the order of the logits.
        mean, std: of the channels in units of the pixel range 0 to 1, which images are normalised with.
        training: what the model card says of the training, as plain values; empty for a network of another origin.
    """

    name: str
    network: Network
    genotype: Genotype
    channels: int
    layers: int
    stem: StemKind
    image: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    training: dict[str, Any]

    @property
    def genotype_json(self) -> str:
        return json.dumps(self.genotype.to_json_dict())

    def metadata(self) -> dict[str, str]:
        """What the files carry beside the weights, each value a JSON text but `format` and `genotype`'s own JSON."""
        rest = {
            "space": self.genotype.space, "channels": self.channels, "layers": self.layers, "stem": self.stem,
            "image": self.image, "classes": self.classes, "mean": self.mean, "std": self.std,
            "training": self.training, "msgdas": version("msgdas"),
        }  # fmt: skip
        return {
            "format": FORMAT, "genotype": self.genotype_json,
            **{name: json.dumps(value) for name, value in rest.items()},
        }  # fmt: skip

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().contiguous() for name, tensor in self.network.state_dict().items()}


def exported(run: Path, name: str = "") -> Exported:
    """The network of a training's newest good checkpoint.

    Args:
        run: its run folder.
        name: of what is exported; `msgdas_` and the run folder's by default.

    Raises:
        RunFolderError, ConfigError, CheckpointError: as `trained`; a name that is none of Python's.
        DataError: the training's data set, which names the classes, is not there.
    """
    config, found = trained(run)
    name = name or "msgdas_" + re.sub(r"\W", "_", run.resolve().name, flags=re.ASCII).strip("_")
    if not (name.isascii() and name.isidentifier()):
        raise ConfigError("an export's name is a Python name", got=repr(name), allowed="letters, digits, _",
                          next="--name msgdas_net")  # fmt: skip
    back = "put the data of the training back"
    with data_for(found.state["classes"], options=(), next=back):
        data = load(config, "test")
    if len(data.classes) != found.state["classes"]:
        raise ConfigError(
            "the network was trained for another number of classes", got=f"{len(data.classes)} in {config.data}",
            allowed=f"{found.state['classes']}", next=back,
        )  # fmt: skip
    network = Network(
        config.cells, channels=config.channels, layers=config.layers, classes=len(data.classes), stem=config.stem,
        auxiliary=config.auxiliary > 0,
    )  # fmt: skip
    student = found.state["student"]
    network.load_state_dict(student["average"] or student["network"])
    network.auxiliary = None
    network.eval().requires_grad_(False)
    return Exported(
        name, network, config.cells, config.channels, config.layers, config.stem, config.image, tuple(data.classes),
        data.statistics.mean, data.statistics.std, _training(run, config, found.step),
    )  # fmt: skip


def _training(run: Path, config: TrainConfig, step: int) -> dict[str, Any]:
    rows = [row for row in read_metrics(run / METRICS) if row.get("step", 0) <= step]
    epochs = [row for row in rows if row.get("kind") == "epoch"]
    # In mid-epoch the last accuracy is that of other weights.
    last: dict[str, Any] = epochs[-1] if epochs and epochs[-1]["step"] == step else {}
    return {
        "recipe": config.recipe, "data": config.data, "limit": config.limit, "eval_images": config.eval_images,
        "epochs": config.epochs, "epochs_done": len({row.get("epoch") for row in epochs}), "step": step,
        "batch": config.batch, "lr": config.lr, "schedule": config.schedule, "momentum": config.momentum,
        "nesterov": config.nesterov, "weight_decay": config.weight_decay, "cutout": config.cutout,
        "drop_path": config.drop_path, "auxiliary": config.auxiliary, "label_smoothing": config.label_smoothing,
        "ema": config.ema, "precision": config.precision, "seed": config.seed, "top1": last.get("val_accuracy"),
        "top5": last.get("val_top5"), "loss": last.get("val_loss"),
        "peak_bytes": max((row.get("peak_bytes", 0) for row in rows), default=0),
    }  # fmt: skip


class Comparison:
    """Random images, and what the network makes of them.

    Attributes:
        images_BCHW: three of them, float32.
    """

    def __init__(self, subject: Exported, batch: int = 3) -> None:
        random = torch.Generator().manual_seed(0)
        self.images_BCHW = torch.randn(batch, 3, subject.image, subject.image, generator=random)
        with torch.no_grad():
            self._truth_BC = copy.deepcopy(subject.network).double()(self.images_BCHW.double())
            own = (subject.network(self.images_BCHW) - self._truth_BC).abs().max().item()
            of_images = (self._truth_BC - subject.network.classifier.bias.double()).abs().max().item()
        self._allowed = own + SLACK * of_images + ROUNDING * self._truth_BC.abs().max().item()

    def check(self, what: str, logits_BC: Tensor) -> float:
        """The largest error of logits against fp64, which may be fp32's own and some rounding.

        Raises:
            GateError: it is larger.
        """
        if logits_BC.shape != self._truth_BC.shape:
            error = float("inf")
        else:
            error = (logits_BC.double() - self._truth_BC).abs().max().item()
        if not error <= self._allowed:
            raise GateError(
                f"{what} computes something else than the network, and was not kept", got=f"an error of {error:.2g}",
                allowed=f"{self._allowed:.2g}", next="--format without it, and a report of this line",
            )  # fmt: skip
        return error


def read(path: Path) -> tuple[Network, dict[str, Any]]:
    """The network in an exported safetensors file, in evaluation mode, and its metadata with JSON values read.

    Raises:
        CheckpointError: the file cannot be read, or its weights are not those of its genotype.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
        if about.get("format") != FORMAT:
            raise ValueError(f"format {about.get('format')}")
        facts = {name: value if name == "format" else json.loads(value) for name, value in about.items()}
        network = Network(
            Genotype.from_json_dict(facts["genotype"]), channels=facts["channels"], layers=facts["layers"],
            classes=len(facts["classes"]), stem=facts["stem"],
        )  # fmt: skip
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no network of msgdas", got=str(error).splitlines()[0][:120],
            allowed="a safetensors file of msgdas export", next="msgdas export RUN",
        ) from None  # fmt: skip
    return network.eval(), facts
