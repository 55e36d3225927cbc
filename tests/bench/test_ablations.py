"""One axis at a time: every variant is a configuration that differs from the base in what it says."""

from __future__ import annotations

import pytest
import torch
from msgdas.bench.ablations import AXES, BASE, variants_of
from msgdas.bench.searches import Settings, config_of, rates_of
from msgdas.engine.errors import ConfigError

SMALL = Settings(channels=4, layers=3, image=8, batch=4, least_epochs=2, overrides={})


def test_every_axis_of_the_method_is_there():
    assert {"k", "mode", "assign", "relaxation", "gate", "dbi", "teacher"} <= set(AXES)
    assert [variant.name for variant in variants_of(["mode"])] == ["base", "mode-union"]
    with pytest.raises(ConfigError, match="'depth'"):
        variants_of(["depth"])


@pytest.mark.parametrize("variant", variants_of(list(AXES)), ids=lambda variant: variant.name)
def test_a_variant_runs_and_differs_in_its_axis(variant):
    config = config_of(SMALL, variant, 0, "fashion-mnist-mini", 4, images_per_half=100)
    axis, _, value = variant.name.partition("-")
    if axis == "none":
        assert not config.with_none
    elif axis != "base":
        changed = {name for name in BASE if getattr(config, name) != BASE[name]}
        assert axis in changed or (axis, value) == ("gate", "score")
        assert changed <= {axis, "teacher"}
    rates_of([config], torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), 3)
