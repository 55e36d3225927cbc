"""`python -m msgdas.bench quality`: search on CIFAR-10, look the cell up in NAS-Bench-201's table, and compare means.

Each method searches with each seed in the same super-net on the same images, once for each budget: CPU minutes of the
process, or sample-passes. A search that is done is not repeated; one that was stopped goes on. Rows are appended to
--out as searches finish. The settings are those of `Settings` and `VARIANTS`; they were fixed on the seeds 0 to 3, so
means over other seeds are what counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

from ..engine.errors import ConfigError
from ..engine.settings.config import parse_value
from . import command
from .nasbench import TAU_OF_PARAMETERS, Table, yardsticks
from .rows import append_row, rows_of
from .searches import Bench, Budget, Settings, Variant
from .statistics import paired, summary

DEVELOPMENT_SEEDS = tuple(range(4))
EVALUATION_SEEDS = tuple(range(400, 408))
LEAST_GOOD = 91.0
YARDSTICKS = (
    "a random cell", "every edge 3x3", "1x1 or 3x3 by a coin on each edge", "1x1, 3x3 or skip by lot on each edge",
    "most parameters", "expected best of 25 random cells", "best cell",
)  # fmt: skip

# An alpha that learns as much in minutes as a published search does in hours (ours; DARTS: 3e-4).
FAST_ALPHA: Mapping[str, Any] = {"alpha_lr": 2e-2, "alpha_weight_decay": 0.0}
# The draw of K sub-graphs and what drops are the abstract's, all else is ours.
OUR_SEARCH: Mapping[str, Any] = {
    "method": "msg", "k": 2, "mode": "subgraphs", "gate": "score", "reward": "leave-one-out", "alpha_half": "w",
    "none_weights": False, "dbi": "dropblock", "dbi_rate": 0.05, "dbi_last": 0.05, "teacher": "none", "tau_max": 1.0,
    "tau_min": 1.0, "eval_images": 64, **FAST_ALPHA,
}  # fmt: skip
VARIANTS = {
    variant.name: variant
    for variant in (
        # Alpha rests until most images are learned: before that, training loss favours skip-connects and pooling.
        Variant("msg-loo", OUR_SEARCH, warmup_share=0.7, least_epochs=130),
        Variant("msg-late", {**OUR_SEARCH, "reward": "contrast"}, warmup_share=0.7, least_epochs=130),
        Variant("msg", {**OUR_SEARCH, "reward": "contrast", "alpha_lr": 1e-2}, least_epochs=80),
        Variant("msg-defaults", {"method": "msg", "k": 2, **FAST_ALPHA}),
        Variant("msg-union", {"method": "msg", "k": 2, "mode": "union", **FAST_ALPHA}),
        Variant("gdas", {"method": "gdas", **FAST_ALPHA}),
        Variant("darts", {"method": "darts", **FAST_ALPHA}),
    )
}  # fmt: skip


def keys_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a row's search the same as another's."""
    asked = row["settings"], row["overrides"]
    return row["method"], row["seed"], row["budget_minutes"], row["budget_passes"], json.dumps(asked, sort_keys=True)


def run(
    bench: Bench, variants: Sequence[Variant], seeds: Sequence[int], budgets: Sequence[Budget], out: Path
) -> Iterator[dict[str, Any]]:
    """The rows of all searches, those in `out` first; each new one is appended there as it comes."""
    known = {keys_of(row): row for row in rows_of(out, bench.kind)}
    if any(budget.minutes is not None for budget in budgets):
        bench.rates(variants)
    for budget, seed, variant in product(budgets, seeds, variants):
        asked = {"settings": asdict(bench.settings), "overrides": dict(variant.overrides)}
        minutes_passes = {"budget_minutes": budget.minutes, "budget_passes": budget.passes}
        key = keys_of({"method": variant.name, "seed": seed, **minutes_passes, **asked})
        if key not in known:
            row = bench.row(variant, seed, budget)
            append_row(out, row)
            known[key] = row
            print(f"{variant.name} seed {seed} {budget.label}: {row['accuracy']:.2f} {row['arch']}", file=sys.stderr)
        yield known[key]


def table_text(table: Table, rows: Sequence[Mapping[str, Any]], against: str) -> str:
    """Means by budget and method beside what needs no search, and paired tests of `against` with each other method."""
    taus = f"{'tau':>6} {'train':>6} {'params':>7}"
    lines = [f"{'':42} {'accuracy, mean +- sd':40} {'regret':>7} {'below 91':>9} {taus} {'CPU s':>7}"]
    found = yardsticks(table)
    lines += [f"{name:42} {found[name]:.2f}" for name in YARDSTICKS]
    lines.append(f"{TAU_OF_PARAMETERS:42} {'':66}{found[TAU_OF_PARAMETERS]:5.2f}")

    def budget(row: Mapping[str, Any]) -> tuple[float, float]:
        return row["budget_minutes"] or 0.0, row["budget_passes"] or 0

    def name(row: Mapping[str, Any]) -> str:
        return row["method"]

    for (minutes, passes), of_budget in groupby(sorted(rows, key=budget), budget):
        lines.append(f"\n{minutes:g} CPU minutes" if minutes else f"\n{passes} sample-passes")
        groups = {key: list(group) for key, group in groupby(sorted(of_budget, key=name), name)}
        lines += [_method_line(key, group) for key, group in groups.items()]
        lines += [f"  {line}" for line in paired_lines(groups, against)]
    return "\n".join(lines)


def _method_line(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    bad = sum(row["accuracy"] < LEAST_GOOD for row in rows)
    return (
        f"{name:42} {summary([row['accuracy'] for row in rows])!s:40} {mean_text(rows, 'regret'):>7} "
        f"{bad:4} of {len(rows):2} {mean_text(rows, 'tau'):>6} {mean_text(rows, 'tau_training'):>6} "
        f"{mean_text(rows, 'tau_of_parameters'):>7} {mean_text(rows, 'cpu_s', 0):>7}"
    )


def mean_text(rows: Sequence[Mapping[str, Any]], key: str, digits: int = 2) -> str:
    """Mean of a figure over the rows; a dash where one has none, as those of older versions."""
    if any(key not in row for row in rows):
        return "-"
    return f"{summary([row[key] for row in rows]).mean:.{digits}f}"


def paired_lines(groups: Mapping[str, Sequence[Mapping[str, Any]]], against: str) -> Iterator[str]:
    """`against` and each other method on the seeds that both have, two at least: difference, interval, tests.

    Args:
        groups: rows by method.
        against: whose accuracies the others' are taken from.
    """
    ours = {row["seed"]: row["accuracy"] for row in groups.get(against, ())}
    for name, rows in groups.items():
        both = [(ours[row["seed"]], row["accuracy"]) for row in rows if row["seed"] in ours]
        if name == against or len(both) < 2:
            continue
        test = paired(*zip(*both, strict=True))
        low, high = test.interval
        yield (
            f"{against} - {name}: {test.difference:+.2f} (95 % {low:+.2f} to {high:+.2f}, n={test.n}; "
            f"paired t p={test.t_p:.3f}, Wilcoxon p={test.wilcoxon_p:.3f})"
        )


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """The options that all comparisons of searches have."""
    made = command.parser(name, doc)
    made.add_argument("--table", type=Path, required=True, metavar="FILE", help="all cells: see `chance --help`")
    made.add_argument("--data", required=True, help="CIFAR-10 as a search names it: cifar10 or jpeg-npz:FILE")
    made.add_argument("--space", default="nasbench201", choices=("nasbench201", "nasbench201-conv-skip"))
    size = Settings()
    command.add_sizes(made, layers=size.layers, channels=size.channels, image=size.image, batch=size.batch)
    made.add_argument("--seeds", type=int, nargs="+", default=list(EVALUATION_SEEDS))
    made.add_argument("--budget-minutes", type=float, nargs="*", default=[], metavar="M", help="CPU minutes (2)")
    made.add_argument("--budget-passes", type=int, nargs="*", default=[], metavar="N", help="images times networks")
    made.add_argument(
        "--least-epochs", type=int, default=Settings().least_epochs, metavar="N",
        help="the halves are cut to what the budget passes so often (12)",
    )  # fmt: skip
    made.add_argument("--runs", type=Path, default=Path("runs") / name, help="run folders")
    made.set_defaults(out=Path("bench") / "results" / f"{name}.jsonl")
    made.add_argument("--only-report", action="store_true", help="no search: what --out holds")
    return made


def budgets_of(arguments: argparse.Namespace) -> list[Budget]:
    """The budgets that were asked for; two CPU minutes by default."""
    found = [Budget(minutes=minutes) for minutes in arguments.budget_minutes]
    found += [Budget(passes=passes) for passes in arguments.budget_passes]
    return found or [Budget(minutes=2.0)]


def report(
    arguments: argparse.Namespace, variants: Sequence[Variant], against: str, words: str, kind: str = "quality"
) -> int:
    """Run or read the searches of a kind, then print them; `words` ask for the variants on the command line."""
    settings = Settings(
        space=arguments.space, layers=arguments.layers, channels=arguments.channels, image=arguments.image,
        batch=arguments.batch, least_epochs=arguments.least_epochs,
    )  # fmt: skip
    table = Table.read(arguments.table)
    if arguments.only_report:
        rows = rows_of(arguments.out, kind)
        rows = [row for row in rows if row["settings"] == asdict(settings)]
        rows = [row for row in rows if row["seed"] in arguments.seeds]
    else:
        bench = Bench(settings, arguments.data, table, arguments.runs, f"{command.PROGRAM} {words}", kind)
        rows = list(run(bench, variants, arguments.seeds, budgets_of(arguments), arguments.out))
    if arguments.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        print(table_text(table, rows, against))
    return 0


def changed(variant: Variant, pairs: Sequence[str]) -> Variant:
    """The variant with KEY=VALUE of a search's configuration over its own, named after them; itself without any.

    Raises:
        ConfigError: for a pair without `=`, an unknown key or a value of the wrong type.
    """
    if not pairs:
        return variant
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError("unreadable --set", got=repr(pair), allowed="KEY=VALUE", next="--set alpha_half=w")
    found = {key: parse_value(key, value) for key, _, value in (pair.partition("=") for pair in pairs)}
    return replace(variant, name=f"{variant.name}+{','.join(pairs)}", overrides={**variant.overrides, **found})


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("quality", __doc__)
    made.add_argument("--methods", default="msg-loo,gdas,darts", metavar="A,B", help=f"of {', '.join(VARIANTS)}")
    made.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of every search; its rows say so"
    )
    arguments = made.parse_args(argv)
    names = [name.strip() for name in arguments.methods.split(",")]
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ConfigError("unknown method", got=repr(unknown[0]), allowed=", ".join(VARIANTS), next="--methods msg")
    variants = [changed(VARIANTS[name], arguments.set) for name in names]
    words = " ".join([f"quality --methods {arguments.methods}", *(f"--set {pair}" for pair in arguments.set)])
    return report(arguments, variants, variants[0].name, words)


if __name__ == "__main__":
    sys.exit(command.answer(main))
