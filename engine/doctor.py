"""`msgdas doctor`: what to paste in a bug report."""

from __future__ import annotations

import json
import tempfile
from typing import Any

from .run.environment import environment

OPTIONAL = {
    "tensorboard": "TensorBoard events: pip install 'msgdas[tb]'",
    "triton": "comes with torch on Linux; needed for kernels on a GPU only",
    "nvidia-dali-cuda130": "not used by this version",
}


def doctor(*, as_json: bool) -> str:
    """Versions, devices and a self test, one line each, or the same as JSON."""
    facts = environment()
    checks = {"fp64 matrix product": _self_test(), "current folder": _writable()}
    if as_json:
        return json.dumps({**facts, "checks": checks}, indent=2)
    lines = [f"msgdas {facts['msgdas']}  commit {facts['commit'] or 'unknown (no checkout)'}"]
    lines.append(f"python {facts['python']}  {facts['platform']}")
    for name, found in facts["packages"].items():
        hint = "" if found else f"  ({OPTIONAL.get(name, 'pip install msgdas')})"
        lines.append(f"{name:20} {found or 'missing'}{hint}")
    cpu = facts["cpu"]
    lines.append(f"{'cpu':20} {cpu['model']}, {cpu['cores']} cores, {cpu['memory_bytes'] / 2**30:.1f} GiB")
    for gpu in facts["gpus"]:
        lines.append(f"{'gpu':20} {gpu['name']}, {gpu['memory_bytes'] / 2**30:.1f} GiB, driver {gpu['driver']}")
    if facts["no_gpu_because"]:
        lines.append(f"{'gpu':20} none ({facts['no_gpu_because']}); searches run on the CPU")
    lines += [f"{name:20} {result}" for name, result in checks.items()]
    return "\n".join(lines)


def _self_test() -> str:
    import torch

    a = torch.arange(9, dtype=torch.float64).view(3, 3)
    right = torch.tensor([15.0, 54.0, 111.0], dtype=torch.float64)
    found: Any = (a @ a).diagonal()
    return "ok" if torch.equal(found, right) else f"wrong: {found.tolist()} instead of {right.tolist()}"


def _writable() -> str:
    try:
        with tempfile.TemporaryFile(dir="."):
            return "writable"
    except OSError as error:
        return f"not writable ({error.strerror}): msgdas search needs --out elsewhere"
