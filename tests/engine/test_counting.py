"""Parameters and MACs against networks that others built and counted."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
from msgdas.engine.errors import ConfigError
from msgdas.engine.spaces.counting import count
from msgdas.engine.spaces.genotype import from_arch
from msgdas.engine.spaces.genotype_text import load_any, parse_tuple_text


def test_published_cells_exactly(shared_data: Path) -> None:
    path = shared_data / "genotypes.json"
    entries = json.loads(path.read_text())["genotypes"]
    for name, entry in entries.items():
        genotype = load_any(f"{path}:{name}")
        for network, measured in entry["measured"].items():
            stem, channels, layers, classes = network.split("_")
            cost = count(
                genotype,
                channels=int(channels[1:]),
                layers=int(layers[1:]),
                image=224 if stem == "imagenet" else 32,
                classes=int(classes),
                stem=stem,
            )
            got = {"params": cost.params, "params_with_aux": cost.params_with_aux, "macs": cost.macs}
            assert got == measured, (name, network)
    assert sum(len(entry["measured"]) for entry in entries.values()) >= 20


def test_nasbench201_cells_exactly(shared_data: Path) -> None:
    """All cells; the table's MACs include the classifier's bias, one per class, which ours leave out."""
    classes = 10
    with gzip.open(shared_data / "nasbench201_cifar10.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5**6
    for row in rows:
        cost = count(from_arch(row["arch"]), channels=16, layers=15, image=32, classes=classes, stem="cifar")
        assert (cost.params, cost.macs + classes) == (int(row["params_c10"]), int(row["macs_c10"])), row["arch"]
        assert cost.params_with_aux is None


def test_conv_7x1_1x7_of_stride_2_by_hand() -> None:
    """AmoebaNet's operation, 8 channels, side 8 to 4: 1x7 halves the width, then 7x1 the height."""

    def cost(operation: str) -> tuple[int, int]:
        pools = "[('max_pool_3x3', 0), ('max_pool_3x3', 1)]"
        cell = f"reduce=[('{operation}', 0), ('max_pool_3x3', 1)], reduce_concat=[2]"
        genotype = parse_tuple_text(f"Genotype(normal={pools}, normal_concat=[2], {cell})")
        found = count(genotype, channels=4, layers=1, image=8, classes=10, stem="cifar")
        return found.params, found.macs

    (params, macs), (without_params, without_macs) = cost("conv_7x1_1x7"), cost("none")
    assert params - without_params == 2 * 7 * 8 * 8 + 2 * 8
    assert macs - without_macs == 7 * 8 * 8 * (8 * 4 + 4 * 4)


SKIPS = from_arch("|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|")


@pytest.mark.parametrize(
    "change",
    [{"channels": 15}, {"layers": 4}, {"image": 30}, {"image": 0}, {"classes": 0}, {"stem": "imagenet"}],
)
def test_sizes_no_network_has(change: dict[str, object]) -> None:
    size = {"channels": 16, "layers": 15, "image": 32, "classes": 10, "stem": "cifar", **change}
    with pytest.raises(ConfigError):
        count(SKIPS, **size)
