"""The card that goes with an exported network: what it is, how it was trained, what it costs, what it is not."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..spaces.counting import count
from .exported import Exported

RECONSTRUCTION = (
    "msgdas reconstructs MSG-DAS (arXiv 2107.04324) from its abstract. This network is not the paper's, and no figure "
    "here is."
)
PROTOCOL = (
    "recipe", "epochs", "batch", "lr", "schedule", "momentum", "nesterov", "weight_decay", "label_smoothing", "cutout",
    "drop_path", "auxiliary", "ema", "precision", "limit", "seed",
)  # fmt: skip


def model_card(subject: Exported, files: Sequence[str], inference_bytes: int) -> str:
    """Markdown.

    Args:
        subject: the network.
        files: what lies beside the card.
        inference_bytes: measured peak of live bytes above the weights, one image, fp32 on the CPU.
    """
    cost = count(
        subject.genotype, channels=subject.channels, layers=subject.layers, image=subject.image,
        classes=len(subject.classes), stem=subject.stem,
    )  # fmt: skip
    rows = [
        ("input", f"[B, 3, {subject.image}, {subject.image}], pixels / 255 less mean {_list(subject.mean)}, "
                  f"over deviation {_list(subject.std)}"),
        ("output", f"logits of {len(subject.classes)} classes: {_named(subject.classes)}"),
        ("space, channels, layers, stem",
         f"{subject.genotype.space}, {subject.channels}, {subject.layers}, {subject.stem}"),
        ("parameters", f"{cost.params:,}"),
        ("multiply-accumulates", f"{cost.macs:,} for one image (FLOPs: two for each)"),
        ("weights", f"{4 * cost.params / 2**20:,.2f} MiB in float32"),
        ("peak memory of inference", f"{inference_bytes / 2**20:,.2f} MiB above the weights for one float32 image"),
    ]  # fmt: skip
    parts = [f"# {subject.name}", "", RECONSTRUCTION, "", "| what | value |", "|---|---|"]
    parts += [f"| {name} | {value} |" for name, value in rows]
    parts += ["", "Genotype:", "", "```json", json.dumps(subject.genotype.to_json_dict()), "```", ""]
    parts += _training_lines(subject)
    parts += ["## Files", "", *(f"- `{name}`" for name in files), ""]
    return "\n".join(parts)


def _training_lines(subject: Exported) -> list[str]:
    found = subject.training
    if not found:
        return ["Its weights come from no training of msgdas.", ""]
    lines = ["## Training", ""]
    if found["top1"] is None:
        lines += ["These weights were not judged: the checkpoint was made within an epoch.", ""]
    else:
        top5 = "" if found["top5"] is None else f", top-5 {found['top5']:.2%}"
        images = f"{found['eval_images']} test images" if found["eval_images"] else "all test images"
        lines += [
            f"Accuracy after the last epoch: top-1 {found['top1']:.2%}{top5}, on {images} of {found['data']}; "
            "one training, one seed.", "",
        ]  # fmt: skip
    if found["epochs_done"] < found["epochs"]:
        lines += [f"**The training was not finished: {found['epochs_done']} of {found['epochs']} epochs.**", ""]
    lines += ["| setting | value |", "|---|---|", f"| data | {found['data']} |"]
    lines += [f"| {name} | {found[name]} |" for name in PROTOCOL]
    lines += [f"| measured peak memory of a step | {found['peak_bytes'] / 2**20:,.1f} MiB |", ""]
    return lines


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _named(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:20])
    return shown if len(classes) <= 20 else f"{shown}, ..."
