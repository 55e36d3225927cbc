"""Latencies of operations and networks, measured here; tables that are read back; the fitted predictor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgdas.engine.cli import main
from msgdas.engine.errors import ConfigError
from msgdas.engine.latency.fit import fit, relative_error
from msgdas.engine.latency.latency import measure_networks, measure_table, with_fit
from msgdas.engine.network.network import Cell, Network
from msgdas.engine.search.evaluate import random_cells
from msgdas.engine.spaces.constrained import Limit, most_probable
from msgdas.engine.spaces.costs import NetworkSize
from msgdas.engine.spaces.derive import weights_of
from msgdas.engine.spaces.latency_table import load_latency, lookup_table, places
from msgdas.engine.spaces.space import DARTS, IMAGENET_FBNET, IMAGENET_MOBILE, NASBENCH201, SearchSpace

SIZES = [
    (DARTS, NetworkSize(4, 5, 16, 10, "cifar")),
    (DARTS, NetworkSize(4, 6, 64, 10, "imagenet")),
    (NASBENCH201, NetworkSize(4, 3, 16, 10, "cifar")),
    (IMAGENET_MOBILE, NetworkSize(8, 21, 32, 10, "imagenet")),
    (IMAGENET_FBNET, NetworkSize(8, 22, 32, 10, "imagenet")),
]


@pytest.mark.parametrize(("space", "size"), SIZES)
def test_places_are_those_of_the_network(space: SearchSpace, size: NetworkSize) -> None:
    """Shapes that pass through the real modules, and sums that the table repeats for any genotype."""
    table = measure_table(space, size, repeats=1)
    known = {part.place: part.ms for part in table.parts}
    lookup = table.costs()
    for genotype in random_cells(space, 5, 3):
        net = Network(genotype, channels=size.channels, layers=size.layers, classes=10, stem=size.stem).eval()
        edges = [
            edge for layer in net.layers if isinstance(layer, Cell) and layer.spec.kind in genotype.kinds
            for edge in layer.edges
        ]  # fmt: skip
        shapes: list[tuple[int, ...]] = []

        def note(module: object, given: tuple[torch.Tensor], out: torch.Tensor, to=shapes) -> None:
            to.append((given[0].shape[1], *out.shape[1:3], given[0].shape[2]))

        for edge in edges:
            edge.register_forward_hook(note)
        with torch.inference_mode():
            net(torch.randn(1, 3, size.image, size.image))
        found = places(genotype, size)
        assert shapes == [(p.channels_in, p.channels, p.side, p.side * p.stride) for p in found]
        assert lookup.of(genotype) == pytest.approx(table.rest_ms + sum(known[place] for place in found), rel=1e-9)


def test_a_table_survives_its_file_and_limits_a_network(tmp_path: Path) -> None:
    space, size = SIZES[0]
    table = measure_table(space, size, repeats=2)
    cells = random_cells(space, 1, 16)
    table = with_fit(table, cells, measure_networks(cells, size, repeats=2))
    path = tmp_path / "table.json"
    path.write_text(table.to_json())
    again = load_latency(path)
    assert again == table and again.costs() == table.costs() and again.costs() != again.costs(lookup=True)
    again.require(space, size)
    generator = torch.Generator().manual_seed(0)
    costs = again.costs(lookup=True)
    most = sorted(costs.of(cell) for cell in random_cells(space, 2, 20))[4]
    for _ in range(10):
        alpha = {spec.kind: torch.randn(len(spec.edges), 8, generator=generator).tolist() for spec in space.cells}
        found = most_probable(space, weights_of(space, alpha), [Limit("target_latency", costs, most)])
        assert costs.of(found) <= most


def test_a_fit_finds_a_law_that_is_there() -> None:
    """Half the table, and 0.3 ms for each 3x3: exactly what the model can say, so held-out errors vanish."""
    size = SIZES[2][1]
    parts = {place: 0.1 + 0.01 * len(place.name) * place.channels for cell in random_cells(NASBENCH201, 0, 60)
             for place in places(cell, size)}  # fmt: skip
    lookup = lookup_table(parts, 2.0, NASBENCH201, size)
    cells = random_cells(NASBENCH201, 3, 60)
    law = [0.5 * lookup.of(c) + 0.3 * sum(p.name == "nor_conv_3x3" for p in places(c, size)) for c in cells]
    predictor = fit(lookup, size, cells[:30], law[:30])
    assert relative_error([predictor.predict(cell) for cell in cells[30:]], law[30:]) < 2e-3
    costs = predictor.costs()
    assert [costs.of(cell) for cell in cells] == pytest.approx([predictor.predict(cell) for cell in cells], rel=1e-9)
    assert relative_error([lookup.of(cell) for cell in cells], law) > 0.1


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    space, size = SIZES[2]
    table = measure_table(space, size, repeats=1)
    good = json.loads(table.to_json())
    path = tmp_path / "table.json"
    rows = good["tables"]["cell"]
    damage = [
        "", "[]", "{", "[" * 100_000, json.dumps({**good, "format": 2}), json.dumps({**good, "more": 1}),
        json.dumps({**good, "fixed_ms": None}), json.dumps({**good, "tables": {}}),
        json.dumps({**good, "tables": {"cell": rows[:5]}}),
        json.dumps({**good, "tables": {"cell": [*rows[:5], [1, 2]]}}),
        json.dumps({**good, "tables": {"cell": [*rows[:5], [1, 2, 3, 4, float("nan")]]}}),
        json.dumps({**good, "size": {"channels": 4}}), json.dumps({**good, "parts": [{"ms": 1}]}),
        json.dumps({**good, "space": "darts"}),
    ]  # fmt: skip
    for text in damage:
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_latency(path)
        assert str(caught.value).count("\n") == 0 and "Next: " in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        load_latency(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="of another network; got channels 4; allowed channels 16"):
        table.require(space, replace(size, channels=16))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.json"
    sizes = ["--channels", "4", "--layers", "3", "--image", "16", "--repeats", "2"]
    assert main(["latency", "--space", "nasbench201", *sizes, "--networks", "8", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "mean relative error on 2 random networks" in printed and "nor_conv_3x3" in printed
    assert load_latency(out).fit["networks"] == 6
    assert main(["latency", "DARTS_V2", *sizes, "--networks", "0"]) == 0
    assert "the network of DARTS_V2: " in capsys.readouterr().out
    for words, message in (
        (["--networks", "3"], "networks is too small"),
        (["--repeats", "0"], "repeats is too small"),
        (["--device", "tpu"], "no such device"),
        (["--image", "7"], "a multiple of 4"),
        (["--out", str(tmp_path / "no" / "table.json")], "cannot write the device table"),
    ):
        assert main(["latency", "--space", "nasbench201", *sizes, "--networks", "0", *words]) == 2
        assert message in capsys.readouterr().err
