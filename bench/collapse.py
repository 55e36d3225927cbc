"""`python -m msgdas.bench collapse`: skip-connects over time on spaces where DARTS collapses.

Spaces s1 to s3 of Zela et al. (ICLR 2020); Dropblock-Identity off, as dropout, and as DropBlock. Counted are the
skip-connects among the eight operations of the normal cell that alpha says after each epoch: a search collapses where
they take over. Their S4 has noise in place of the skip-connect and cannot show it. The searches are short and small;
a curve says something where it differs by more than its spread over seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ..engine.run.rundir import read_metrics
from ..engine.settings.config import SearchConfig, build
from . import command
from .results import provenance
from .rows import append_row, rows_of, without_paths
from .searches import searched
from .statistics import summary

SPACES = ("s1", "s2", "s3")
KINDS = ("off", "dropout", "dropblock")
MOMENTS = (0.25, 0.5, 0.75, 1.0)


def config_of(space: str, dbi: str, seed: int, arguments: argparse.Namespace) -> SearchConfig:
    """One search: K=2 in mode `union`, five cells at C=8 on 16 x 16 pixels, alpha from the first epoch on."""
    base = {
        "recipe": f"collapse-{space}-{dbi}", "space": space, "data": arguments.data, "dbi": dbi, "seed": seed,
        "method": "msg", "k": 2, "mode": "union", "channels": arguments.channels, "layers": arguments.layers,
        "image": arguments.image, "batch": 32, "limit": arguments.limit, "epochs": arguments.epochs, "warmup": 0,
        "eval_images": 256, "lr": 0.1, "alpha_lr": 2e-2, "teacher": "none", "policy": "all", "device": "cpu",
        "threads": 1, "keep": 1,
    }  # fmt: skip
    return build(base, {})


def run(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of all searches, those in `--out` first; each new one is appended there as it comes."""
    known = {row["config_json"]: row for row in rows_of(arguments.out, "collapse")}
    for seed, space, dbi in product(arguments.seeds, arguments.spaces, KINDS):
        config = config_of(space, dbi, seed, arguments)
        text = json.dumps(without_paths(config), sort_keys=True)
        if text not in known:
            name = f"{space}-{dbi}-epochs{config.epochs}-seed{seed}"
            result, cpu_s, _ = searched(config, arguments.runs / name)
            epochs = [row for row in read_metrics(result.path / "metrics.jsonl") if row.get("kind") == "epoch"]
            row = {
                "kind": "collapse", "space": space, "dbi": dbi, "seed": seed, "cpu_s": round(cpu_s, 2),
                "skips": [epoch["skips"]["normal"] for epoch in epochs],
                "val_accuracy": [epoch["val_accuracy"] for epoch in epochs],
                "genotype": result.genotype.to_json_dict(), "config_json": text,
                "provenance": provenance(f"{command.PROGRAM} collapse --seeds {seed} --spaces {space}", threads=1),
            }  # fmt: skip
            append_row(arguments.out, row)
            known[text] = row
            print(f"{space} {dbi} seed {seed}: skips {row['skips']}", file=sys.stderr)
        yield known[text]


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and deviation of the skip-connects after parts of the epochs, by space and kind of Dropblock-Identity."""
    heads = "".join(f"{f'after {moment:.0%}':>15}" for moment in MOMENTS)
    lines = [f"{'skip-connects of 8, normal cell':32} {'n':>2} {heads} {'val. accuracy':>15}"]
    for space, dbi in product(SPACES, KINDS):
        own = [row for row in rows if (row["space"], row["dbi"]) == (space, dbi)]
        if not own:
            continue
        curves = [[row["skips"][round(moment * len(row["skips"])) - 1] for row in own] for moment in MOMENTS]
        means = [summary(values) for values in (*curves, [100 * row["val_accuracy"][-1] for row in own])]
        spreads = [f" +- {found.sd:.1f}" if found.n > 1 else "" for found in means]
        cells = "".join(f"{f'{found.mean:.1f}{spread}':>15}" for found, spread in zip(means, spreads, strict=True))
        lines.append(f"{f'{space}, {dbi}':32} {len(own):2} {cells}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser("collapse", __doc__)
    parser.add_argument("--data", default="fashion-mnist-mini", help="as a search names it (default: the embedded set)")
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--limit", type=int, default=1280, help="images of each half")
    command.add_sizes(parser, channels=8, layers=5, image=16)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "collapse", help="run folders")
    parser.set_defaults(out=Path("bench") / "results" / "collapse.jsonl")
    arguments = parser.parse_args(argv)
    rows = list(run(arguments))
    print("\n".join(json.dumps(row) for row in rows) if arguments.json else table_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(command.answer(main))
