"""The masks of Dropblock-Identity: the kernel has the bits of its plain-PyTorch twin."""

from __future__ import annotations

import pytest
import torch
from msgdas.kernels import branches as codes
from msgdas.kernels.branches import Geometry
from msgdas.kernels.drop_mask import drop_mask
from msgdas.kernels.errors import KernelError
from msgdas.kernels.reference import dropblock


def geometry(batch, height, width, channels):
    return Geometry(batch, height, width, channels, height, width, 2, 4, 1, channels, 4 * channels)


def table(*rows):
    table_J8 = torch.full((len(rows), codes.COLUMNS), -1, dtype=torch.int32)
    for number, (code, gate) in enumerate(rows):
        table_J8[number, codes.CODE], table_J8[number, codes.GATE] = code, gate
    return table_J8


ROWS = table((codes.SKIP, 3), (codes.SEP3, 4), (codes.SKIP, 11), (codes.NONE, -1))
CLOCK = torch.tensor([(1 << 40) + 5, 7])


@pytest.mark.parametrize("kind", ["dropblock", "dropout"])
@pytest.mark.parametrize(
    "shape", [(2, 9, 7, 16), (1, 5, 6, 24), (2, 2, 2, 48), (1, 1, 3, 16), (1, 14, 15, 16), (1, 28, 30, 8)]
)
def test_bits_and_scales_are_the_twins(shape, kind):
    geo = geometry(*shape)
    rate = torch.tensor(0.3)
    drop, scale = drop_mask(ROWS, CLOCK, 2, rate, geo, kind=kind)
    expected, expected_scale = dropblock.drop_mask(ROWS, CLOCK, 2, rate, geo, kind=kind)
    assert drop.dtype == torch.uint8 and scale.dtype == torch.float32
    for number in (0, 2):
        assert torch.equal(drop[number], expected[number])
        if expected[number].any():
            torch.testing.assert_close(scale[number], expected_scale[number], rtol=2e-7, atol=0)
    assert not torch.equal(drop[0], drop[2]), "each skip-connect has a mask of its own"
    assert scale[1] == scale[3] == 1


def test_negative_seeds_and_late_draws():
    geo = geometry(2, 8, 8, 16)
    for clock in (torch.tensor([-3, 1 << 33]), torch.tensor([(1 << 62) + 1, 0])):
        drop, _ = drop_mask(ROWS, clock, 0, torch.tensor(0.5), geo, kind="dropblock")
        assert torch.equal(drop[0], dropblock.drop_mask(ROWS, clock, 0, torch.tensor(0.5), geo, kind="dropblock")[0][0])


def test_a_rate_of_zero_passes_everything():
    geo = geometry(2, 8, 8, 16)
    for kind in ("dropblock", "dropout"):
        drop, scale = drop_mask(ROWS, CLOCK, 0, torch.tensor(0.0), geo, kind=kind)
        assert drop[0].all()
        assert scale[0] == 1


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("branches_J8", {"branches_J8": ROWS.long()}),
        ("branches_J8", {"branches_J8": ROWS[::2]}),
        ("branches_J8", {"branches_J8": ROWS[:, :4]}),
        ("clock", {"clock": CLOCK.int()}),
        ("clock", {"clock": torch.zeros(3, dtype=torch.int64)}),
        ("clock", {"clock": torch.zeros(2, dtype=torch.int64, device="meta")}),
        ("rate", {"rate": torch.tensor([0.3])}),
        ("rate", {"rate": torch.tensor(0.3, dtype=torch.float64)}),
        ("kind", {"kind": "shake"}),
        ("geometry", {"geometry": geometry(1 << 12, 1 << 10, 1 << 5, 16)}),
    ],
)
def test_wrong_arguments_are_named(argument, change):
    arguments = {
        "branches_J8": ROWS, "clock": CLOCK, "stream": 0, "rate": torch.tensor(0.3),
        "geometry": geometry(1, 4, 4, 16), "kind": "dropout",
    }  # fmt: skip
    with pytest.raises(KernelError, match=argument) as raised:
        drop_mask(**{**arguments, **change})
    assert raised.value.argument == argument
