"""Every launcher on tensors without data: what it allocates and frees inside, and what `kernels.scratch` declares.

Run as a program in a process in which Triton does not interpret; prints JSON, a list of (inside, declared) bytes for
each launcher. Nothing is compiled or run.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections import defaultdict

from msgdas.kernels import bn_combine, catalogue, drop_mask, grouped_stage, prepare, recording, stage_backward
from msgdas.kernels import scratch as declared
from msgdas.profiles.tracker import LiveBytes

FOUND = defaultdict(list)


def plain(name):
    """The operator's name of a launcher's argument: without the shape."""
    return {"branches": "rows"}.get(bare := re.sub(r"_[A-Z0-9]*$", "", name), bare)


def watched(launch):
    def run(*args, **kwargs):
        bound = inspect.signature(launch).bind(*args, **kwargs)
        bound.apply_defaults()
        given = {plain(name): value for name, value in bound.arguments.items()}
        if "geometry" in given:
            given["geometry"] = dataclasses.astuple(given["geometry"])
        with LiveBytes() as live:
            result = launch(*args, **kwargs)
            inside_bytes = live.peak_bytes - live.live_bytes
        size = declared._SCRATCH.get(launch.__name__, lambda given: 0)
        FOUND[launch.__name__].append((inside_bytes, size(given)))
        return result

    return run


def main():
    for place, names in {
        grouped_stage: ("grouped_stage",),
        bn_combine: ("bn_combine", "bn_combine_backward"),
        stage_backward: ("point_backward", "taps_backward"),
        catalogue.gather_backward: ("gather_backward",),
        prepare: ("prepare_into",),
        drop_mask: ("drop_mask",),
        catalogue: ("prepare_backward", "stage_weight_grads"),
    }.items():
        for name in names:
            setattr(place, name, watched(getattr(place, name)))
    with recording._recording(recording.TARGETS["sm_90"], lambda **_: True):
        for cell in catalogue.CELLS.values():
            catalogue.launch_all(cell, "meta")
    print(json.dumps(FOUND))


if __name__ == "__main__":
    main()
