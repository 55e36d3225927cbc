"""Methods as data: a method fixes settings of the one search loop and owns no loop of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError
from ..spaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class Method:
    """Settings that define a search method.

    Attributes:
        name: as `--method` takes it.
        fixed: configuration keys that the method sets; `k` may be `"all"`, the number of candidates, and any value a
            mapping from the space's family.
        source: where the method is published.
    """

    name: str
    fixed: Mapping[str, object]
    source: str

    def settings(self, space: SearchSpace, with_none: bool = True) -> dict[str, object]:
        """The keys that the method sets in a space; `with_none` says whether `none` is a candidate elsewhere."""
        family = space.family
        found = {name: value[family] if isinstance(value, Mapping) else value for name, value in self.fixed.items()}
        if found.get("k") == "all":
            found["k"] = space.candidates_per_edge(with_none=bool(found.get("with_none", with_none)))
        return found


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
# The mixture of all operations that DARTS and its heirs train.
DENSE: Mapping[str, object] = {
    "k": "all",
    "mode": "union",
    "noise": "off",
    "relaxation": "shared",
    "gate": "sampled",
    "tau_max": 1.0,
    "tau_min": 1.0,
    "dbi": "off",
    "teacher": "none",
}
DARTS = Method(
    "darts",
    DENSE,
    "Liu, Simonyan and Yang, DARTS (ICLR 2019), first order",
)
PROXYLESS: Mapping[str, object] = {
    "mode": "union",
    "noise": "gumbel",
    "relaxation": "plain",
    "alpha_every": 5,
    "dbi": "off",
    "teacher": "none",
}
PROXYLESS_FULL = Method(
    "proxyless",
    {**PROXYLESS, "k": 1, "gate": "recompute"},
    "Cai, Zhu and Han, ProxylessNAS (ICLR 2019), gates of all paths (full_v2 of mit-han-lab/proxylessnas)",
)
PROXYLESS_TWO = Method(
    "proxyless-two",
    {**PROXYLESS, "k": 2, "gate": "restricted", "forward": "one", "k_weights": 1},
    "Cai, Zhu and Han, ProxylessNAS (ICLR 2019), two paths at a time (its section 3.2.2)",
)
SNAS = Method(
    "snas",
    {**DENSE, "noise": "gumbel", "tau_max": 1.0, "tau_min": 0.03, "alpha_half": "w"},
    "Xie, Zheng, Liu and Lin, SNAS (ICLR 2019), without its resource penalty",
)
PC_DARTS = Method(
    "pc-darts",
    {**DENSE, "partial": 4, "edge_norm": True, "policy": "autograd"},
    "Xu et al., PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search (ICLR 2020)",
)
FAIR_DARTS = Method(
    "fairdarts",
    {**DENSE, "relaxation": "sigmoid", "with_none": False, "alpha_scale": 0.0, "zero_one": 10.0},
    "Chu, Zhou, Zhang and Li, Fair DARTS: Eliminating Unfair Advantages (ECCV 2020)",
)
DR_NAS = Method(
    "drnas",
    {**DENSE, "noise": "dirichlet", "with_none": {"darts": False, "nasbench201": True, "mobile": True, "fbnet": True}},
    "Chen, Wang, Cheng, Tang and Hsieh, DrNAS: Dirichlet Neural Architecture Search (ICLR 2021)",
)
P_DARTS = Method(
    "pdarts",
    {**DENSE, "keep_ops": {"darts": "5,3", "nasbench201": "3,2", "mobile": "5,3", "fbnet": "5,3"}, "dbi": "dropout"},
    "Chen, Xie, Wu and Tian, Progressive Differentiable Architecture Search (ICCV 2019), without its growing depth",
)
RANDOM = Method(
    "random",
    {
        "k": 1,
        "mode": "union",
        "noise": "gumbel",
        "relaxation": "shared",
        "gate": "sampled",
        "alpha_scale": 0.0,
        "edges_per_node": {"darts": 2, "nasbench201": 0, "mobile": 0, "fbnet": 0},
        "choose": "supernet",
        "dbi": "off",
        "teacher": "none",
    },
    "Li and Talwalkar, Random Search and Reproducibility for NAS (UAI 2019), random search with weight sharing",
)
DARTS2 = Method("darts2", {**DENSE, "order": 2}, "Liu, Simonyan and Yang, DARTS (ICLR 2019), second order")
TF_NAS = Method(
    "tf-nas",
    {
        **DENSE,
        "noise": "gumbel",
        "tau_max": 5.0,
        "tau_min": 0.2,
        "k_weights": 2,
        "mode_weights": "subgraphs",
        "others_weights": "uniform",
        "alpha_every": 2,
    },
    "Hu, Wu and He, TF-NAS: Rethinking Three Search Freedoms (ECCV 2020), its bi-sampling",
)
EVERY = (
    MSG, GDAS, DARTS, DARTS2, PROXYLESS_FULL, PROXYLESS_TWO, SNAS, PC_DARTS, FAIR_DARTS, DR_NAS, P_DARTS, TF_NAS,
    RANDOM,
)  # fmt: skip
METHODS = {method.name: method for method in EVERY}


def method_named(name: str) -> Method:
    """The method of that name; ConfigError lists the names there are."""
    if name not in METHODS:
        raise ConfigError("unknown method", got=repr(name), allowed=", ".join(METHODS), next="--method msg")
    return METHODS[name]
