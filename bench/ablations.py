"""`python -m msgdas.bench ablations`: one part of the reconstruction changed at a time, judged as in `bench.quality`.

The base has the defaults of docs/method.md; each variant changes one axis of it. Same super-net, images, seeds and
budget for all, and a paired test of the base with each.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.errors import ConfigError
from . import command
from .quality import FAST_ALPHA, parser, report
from .searches import Variant

BASE: Mapping[str, Any] = {
    "method": "msg", "k": 2, "mode": "subgraphs", "assign": "rank", "relaxation": "masked", "gate": "sampled",
    "dbi": "dropblock", "teacher": "ensemble", **FAST_ALPHA,
}  # fmt: skip
# Of each axis the values other than the base's; keys that a value needs come with it.
AXES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "k": {"1": {"k": 1, "teacher": "none"}, "3": {"k": 3}, "5": {"k": 5}},
    "mode": {"union": {"mode": "union", "teacher": "none"}},
    "assign": {"shuffle": {"assign": "shuffle"}},
    "relaxation": {"shared": {"relaxation": "shared"}, "soft": {"relaxation": "soft"}},
    "gate": {
        "recompute": {"gate": "recompute"}, "restricted": {"gate": "restricted"}, "score": {"gate": "score"},
        "contrast": {"gate": "score", "reward": "contrast"},
        "leave-one-out": {"gate": "score", "reward": "leave-one-out"},
    },
    "dbi": {"off": {"dbi": "off"}, "dropout": {"dbi": "dropout"}},
    "teacher": {"none": {"teacher": "none"}, "supernet": {"teacher": "supernet"}, "ema": {"teacher": "ema"}},
    "none": {"left-out": {"with_none": False}},
}  # fmt: skip


def variants_of(axes: Sequence[str]) -> list[Variant]:
    """The base, then every other value of those axes; ConfigError for an unknown axis."""
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown:
        raise ConfigError("unknown axis", got=repr(unknown[0]), allowed=", ".join(AXES), next="--axes k,mode")
    changed = [Variant(f"{axis}-{value}", {**BASE, **keys}) for axis in axes for value, keys in AXES[axis].items()]
    return [Variant("base", BASE), *changed]


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("ablations", __doc__)
    made.add_argument("--axes", default=",".join(AXES), metavar="A,B", help=f"of {', '.join(AXES)}")
    arguments = made.parse_args(argv)
    words = f"ablations --axes {arguments.axes}"
    return report(arguments, variants_of(arguments.axes.split(",")), "base", words, "ablation")


if __name__ == "__main__":
    sys.exit(command.answer(main))
