"""A plan as text for the terminal and as JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ...profiles.errors import in_words
from ...profiles.planner import MARGIN, Setting
from ...profiles.predictor import Prediction
from ...profiles.trace import CATEGORIES
from ..settings.config import FIELDS
from ..settings.method import method_named
from .search_plan import Row, SearchPlan

MIB = 1 << 20
SHORT = {"parameters": "param", "gradients": "grad", "optimizer": "optim", "images": "image", "kept": "kept",
         "transient": "transient"}  # fmt: skip


def brief(made: SearchPlan) -> str:
    """The plan in three lines."""
    return "\n".join((*_decided(made), f"why: {'; '.join(made.plan.why)}"))


def _decided(made: SearchPlan) -> tuple[str, str]:
    setting, found = made.plan.setting, made.plan.prediction
    return (
        f"plan: K={setting.k}, batch {setting.batch}, policy {short_policy(setting.policy)}, mode {setting.mode}, "
        f"{setting.dtype} on {made.machine.name}",
        f"predicted: {in_words(found.needed_bytes)} of {in_words(made.budget_bytes)} ({MARGIN:.0%} stay free), "
        f"at most {found.samples_per_s:,.0f} images/s",
    )


def text(made: SearchPlan, files: Mapping[str, str]) -> str:
    """All that `msgdas plan` prints; `files` are those it wrote, by kind."""
    lines = [
        f"{made.machine.name}: {in_words(made.machine.memory_bytes)}, {in_words(made.machine.free_bytes)} free; "
        f"budget {made.budget} = {in_words(made.budget_bytes)}, {MARGIN:.0%} of it stay free",
        *(f"note: {note}" for note in made.machine.notes),
    ]
    if made.target.correction != 1:
        lines.append(
            f"note: this device took up to {made.target.correction:.3f} of what was predicted; held against that"
        )
    if made.rows:
        lines += ["", *_table(made), ""]
    lines += [
        *_decided(made),
        *(f"why: {reason}" for reason in made.plan.why),
        *_variation(made),
        f"to search with it: msgdas search with the same options and {_flags(made)}",
    ]
    setting = made.plan.setting
    wanted = made.rows[0].setting.batch if made.rows else setting.batch
    if setting.batch != wanted:
        lines.append(f"note: learning rates are the recipe's, for batch {wanted}; --batch {wanted} keeps it")
    lines.append(f"files: {', '.join(files.values())}")
    return "\n".join(lines)


def _variation(made: SearchPlan) -> Iterator[str]:
    """How the peak differs from stage to stage of a K schedule, and from sample to sample."""
    if len(made.stages) > 1:
        peaks = ", ".join(f"{in_words(found.needed_bytes)} with {k}" for k, found in made.stages)
        yield f"K schedule, equal shares of the epochs: {peaks}"
    if made.spread_bytes:
        low, middle, high = (made.spread_bytes[at] for at in (0, len(made.spread_bytes) // 2, -1))
        yield (
            f"samples: {len(made.spread_bytes)} draws from the first alpha take {in_words(low)} to {in_words(high)}, "
            f"median {in_words(middle)}; planned is the dearest, {in_words(made.plan.prediction.allocator_bytes)}"
        )
    elif made.target.impl == "triton":
        yield "samples: the kernels take the same for every sample, so that the peak does not drift with alpha"


def _flags(made: SearchPlan) -> str:
    """The plan as options of `msgdas search`, without those that the method fixes."""
    setting, fixed = made.plan.setting, method_named(made.config.method).fixed
    flags = [f"--{name} {getattr(setting, name)}" for name in ("k", "batch", "policy", "mode") if name not in fixed]
    # These are options of a plan alone.
    keys = {"dtype": setting.dtype, "k_schedule": made.config.k_schedule, "prefetch": made.config.prefetch}
    flags += [f"--set {name}={value}" for name, value in keys.items() if value != FIELDS[name].default]
    return " ".join(flags)


def _table(made: SearchPlan) -> Iterator[str]:
    setting = made.rows[0].setting
    yield (
        f"peak of a whole step (W and alpha, {made.target.impl} cells) in MiB at batch {setting.batch}, "
        f"{setting.dtype}, and what it is made of; predicted, not measured"
    )
    head = [SHORT[name] for name in CATEGORIES] + ["pools", "context", "peak", "max batch", "images/s"]
    width = max(len(row.method) for row in made.rows) + 1
    yield f"{'method':{width}}{'mode':11}{'K':>2} {'policy':8}" + "".join(f"{word:>10}" for word in head)
    before: tuple[Any, ...] = ()
    for row in made.rows:
        group = (row.method, row.setting.mode, row.setting.k)
        names = ("", "", "") if group == before else group
        before = group
        yield f"{names[0]:{width}}{names[1]:11}{names[2]!s:>2} {row.setting.policy:8}" + _numbers(row, made)
    for name, others in made.alike.items():
        if others:
            yield f"{name}: the same for {', '.join(others)}"
    yield from (f"not here: {reason}" for reason in made.left_out)
    yield f"pools: segments, rounding{' and graphs' if made.target.graph else ''} of the allocator beyond the tensors"
    yield "context: what a process takes beside its tensors" + (
        ", and libraries' workspaces; assumed until measured" if made.machine.cuda else ""
    )
    yield "images/s: at most, from bytes and operations at the device's peaks; *: above the budget"


def _numbers(row: Row, made: SearchPlan) -> str:
    found = row.prediction
    sizes = [*(found.peak.split_bytes[name] for name in CATEGORIES), found.allocator_bytes - found.peak.bytes,
             found.context_bytes + found.workspace_bytes]  # fmt: skip
    above = "*" if found.needed_bytes > made.limit_bytes else ""
    batch = "-" if row.largest_batch is None else f"{row.largest_batch:,}"
    if row.largest_batch == made.most_batch:
        batch = f"{batch}+"
    return (
        "".join(f"{size / MIB:>10,.1f}" for size in sizes)
        + f"{f'{found.needed_bytes / MIB:,.1f}{above}':>10}{batch:>10}{found.samples_per_s:>10,.0f}"
    )


def short_policy(policy: str) -> str:
    """`min,min,all` as `min x2, all`."""
    parts = policy.split(",")
    if len(set(parts)) == 1:
        return parts[0]
    groups: list[list[str]] = []
    for part in parts:
        if groups and groups[-1][0] == part:
            groups[-1].append(part)
        else:
            groups.append([part])
    return ", ".join(group[0] if len(group) == 1 else f"{group[0]} x{len(group)}" for group in groups)


def markdown(made: SearchPlan) -> str:
    """The table's peaks as Markdown, a line for each method and K: all that is needed, of which tensors."""
    policies = list(dict.fromkeys(row.setting.policy for row in made.rows))
    lines = [
        f"| MiB needed (of which tensors) | {' | '.join(f'`{policy}`' for policy in policies)} |",
        "|---" * (len(policies) + 1) + "|",
    ]
    groups = dict.fromkeys((row.method, row.setting.mode, row.setting.k) for row in made.rows)
    for method, mode, k in groups:
        found = {
            row.setting.policy: row.prediction for row in made.rows
            if (row.method, row.setting.mode, row.setting.k) == (method, mode, k)
        }  # fmt: skip
        sizes = [_sizes(found[policy]) if policy in found else "" for policy in policies]
        paths = f"{k} in turn" if mode == "subgraphs" and k > 1 else f"K={k}"
        name = ", ".join((method, *made.alike.get(method, ())))
        lines.append(f"| {name}, {paths} | {' | '.join(sizes)} |")
    return "\n".join(lines)


def _sizes(found: Prediction) -> str:
    return f"{found.needed_bytes / MIB:,.0f} ({found.peak.bytes / MIB:,.0f})"


def as_dict(made: SearchPlan) -> dict[str, Any]:
    """The plan for programs: sizes in bytes, times in seconds."""
    return {
        "machine": {
            "name": made.machine.name, "cuda": made.machine.cuda, "memory_bytes": made.machine.memory_bytes,
            "free_bytes": made.machine.free_bytes, "notes": list(made.machine.notes),
        },
        "budget": str(made.budget), "budget_bytes": made.budget_bytes, "margin": MARGIN,
        "impl": made.target.impl, "graph": made.target.graph,
        "plan": {**_setting(made.plan.setting), **_prediction(made.plan.prediction), "why": list(made.plan.why)},
        "correction": made.target.correction,
        "stages": [{"k": k, **_prediction(found)} for k, found in made.stages],
        "spread_bytes": list(made.spread_bytes),
        "rows": [
            {"method": row.method, "alike": list(made.alike.get(row.method, ())),
             **_setting(row.setting), **_prediction(row.prediction),
             "largest_batch": row.largest_batch}
            for row in made.rows
        ],
    }  # fmt: skip


def _setting(setting: Setting) -> dict[str, Any]:
    return dataclasses.asdict(setting)


def _prediction(found: Prediction) -> dict[str, Any]:
    return {
        "needed_bytes": found.needed_bytes, "peak_bytes": found.peak.bytes, "phase": found.peak.section,
        "split_bytes": dict(found.peak.split_bytes), "allocator_bytes": found.allocator_bytes,
        "context_bytes": found.context_bytes, "workspace_bytes": found.workspace_bytes, "step_s": found.step_s,
        "samples_per_s": found.samples_per_s,
    }  # fmt: skip
