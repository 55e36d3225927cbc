"""Methods as data: a method fixes settings of the one search loop and owns no loop of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ConfigError


@dataclass(frozen=True, slots=True)
class Method:
    """Settings that define a search method.

    Attributes:
        name: as `--method` takes it.
        fixed: configuration keys that the method sets; `k` may be `"all"`, the number of operations.
        source: where the method is published.
    """

    name: str
    fixed: Mapping[str, object]
    source: str


MSG = Method("msg", {}, "our reconstruction from the abstract of arXiv 2107.04324")
GDAS = Method(
    "gdas",
    {
        "k": 1,
        "mode": "subgraphs",
        "noise": "gumbel",
        "relaxation": "shared",
        "gate": "sampled",
        "dbi": "off",
        "teacher": "none",
    },
    "Dong and Yang, Searching for a Robust Neural Architecture in Four GPU Hours (CVPR 2019)",
)
DARTS = Method(
    "darts",
    {
        "k": "all",
        "mode": "union",
        "noise": "off",
        "relaxation": "shared",
        "gate": "sampled",
        "tau_max": 1.0,
        "tau_min": 1.0,
        "dbi": "off",
        "teacher": "none",
    },
    "Liu, Simonyan and Yang, DARTS (ICLR 2019), first order",
)
METHODS = {method.name: method for method in (MSG, GDAS, DARTS)}


def method_named(name: str) -> Method:
    """The method of that name; ConfigError lists the names there are."""
    if name not in METHODS:
        raise ConfigError("unknown method", got=repr(name), allowed=", ".join(METHODS), next="--method msg")
    return METHODS[name]
