"""Device facts through the real pynvml and a fake driver library; every fault is one plain line."""

from __future__ import annotations

import pytest

GIB_BYTES = 1 << 30
TWO = f"""
driver 580.65.06
gpu GPU-aaaa-1111 {24 * GIB_BYTES} 8.9 NVIDIA GeForce RTX 4090
gpu GPU-bbbb-2222 {80 * GIB_BYTES} 9.0 NVIDIA H100 80GB HBM3
at 0 0 {GIB_BYTES}
at 1 0 {30 * GIB_BYTES}
proc 1 4242 {20 * GIB_BYTES}
proc 1 4243 -
"""
MIG = f"""
gpu GPU-cccc {40 * GIB_BYTES} 8.0 NVIDIA A100-SXM4-40GB
mig 0
instance 0 0 MIG-1111 {5 * GIB_BYTES} {GIB_BYTES} 7 0 NVIDIA A100-SXM4-40GB MIG 1g.5gb
instance 0 3 MIG-2222 {20 * GIB_BYTES} 0 2 1 NVIDIA A100-SXM4-40GB MIG 3g.20gb
"""
ALL = "from msgdas.profiles.device import gpus; print(json.dumps(asdict(gpus())))"
VISIBLE = (
    "from msgdas.profiles.device import visible_gpus\n"
    "print(json.dumps(asdict(visible_gpus(sys.argv[1], pci_order=sys.argv[2] == 'pci'))))"
)
ONE = (
    "from msgdas.profiles.device import gpu_with_uuid\nfrom msgdas.profiles.errors import ProfileError\n"
    "try:\n    print(json.dumps(asdict(gpu_with_uuid(sys.argv[1]))))\n"
    "except ProfileError as error:\n    print(json.dumps(str(error)))"
)


def test_facts_and_tenants(in_child):
    found = in_child(ALL, TWO)
    small, large = found["devices"]
    assert (small["name"], small["uuid"], small["arch"]) == ("NVIDIA GeForce RTX 4090", "GPU-aaaa-1111", "sm_89")
    assert (small["memory_bytes"], small["used_bytes"], small["driver"]) == (24 * GIB_BYTES, GIB_BYTES, "580.65.06")
    assert small["tenants"] == [] and found["reason"] is None
    assert large["tenants"] == [
        {"pid": 4242, "used_bytes": 20 * GIB_BYTES},
        {"pid": 4243, "used_bytes": None},
    ]


@pytest.mark.parametrize(
    ("script", "reason", "remedy"),
    [
        (None, "libnvidia-ml.so.1 is missing", "--gpu rtx-4090"),
        ("init 4", "no permission", "container"),
        ("init 9", "not loaded", "nvidia-smi"),
        ("init 18", "different versions", "restart"),
        ("init 999", "code 999", "--budget"),
        ("driver 1", "no devices", "--gpu"),
        (f"gpu GPU-a {GIB_BYTES} 8.0 X\nfail 0 15", "GPU 0 of NVML was left out: a GPU has fallen off", "restart"),
        (f"gpu GPU-a {GIB_BYTES} 8.0 X\nfail 0 4", "GPU 0 of NVML was left out: no permission", "container"),
    ],
    ids=["missing", "permission", "unloaded", "mismatch", "unknown", "empty", "lost", "denied"],
)
def test_fault_26_each_is_a_line_and_a_way_out(in_child, script, reason, remedy):
    found = in_child(ALL, script)
    assert found["devices"] == [] and "\n" not in found["reason"]
    assert reason in found["reason"] and remedy in found["remedy"]
    assert reason in in_child(ONE, script, "GPU-a")


def test_fault_26_a_lost_gpu_does_not_hide_the_other(in_child):
    found = in_child(ALL, TWO + "fail 0 15")
    assert [gpu["uuid"] for gpu in found["devices"]] == ["GPU-bbbb-2222"]
    assert found["notes"] == ["GPU 0 of NVML was left out: a GPU has fallen off the bus"]


def test_fault_27_visible_by_uuid_and_index(in_child):
    def uuids(value, order="fastest"):
        return [gpu["uuid"] for gpu in in_child(VISIBLE, TWO, value, order)["devices"]]

    assert uuids("GPU-bbbb") == ["GPU-bbbb-2222"]
    assert uuids("1,0", "pci") == ["GPU-bbbb-2222", "GPU-aaaa-1111"]
    hidden = in_child(VISIBLE, TWO, "1", "fastest")
    assert hidden["devices"] == [] and "name UUIDs" in hidden["reason"] and "GPU-aaaa-1111" in hidden["remedy"]


def test_mig_instances_stand_for_their_gpu(in_child):
    (whole,) = in_child(ALL, MIG)["devices"]
    assert whole["partitioned"] and [part["uuid"] for part in whole["instances"]] == ["MIG-1111", "MIG-2222"]
    part = in_child(ONE, MIG, "MIG-GPU-cccc/2/1")
    assert (part["uuid"], part["memory_bytes"], part["arch"]) == ("MIG-2222", 20 * GIB_BYTES, "sm_80")
    (taken,) = in_child(VISIBLE, MIG, "0", "fastest")["devices"]
    assert (taken["uuid"], taken["used_bytes"]) == ("MIG-1111", GIB_BYTES)
    named = "MIG-2222,MIG-1111"
    for driver, uuids in (("570.86.10", ["MIG-2222", "MIG-1111"]), ("535.104.05", ["MIG-2222"])):
        found = in_child(VISIBLE, f"driver {driver}\n{MIG}", named, "fastest")
        assert [part["uuid"] for part in found["devices"]] == uuids


def test_mig_without_instances(in_child):
    found = in_child(VISIBLE, f"gpu GPU-c {GIB_BYTES} 8.0 NVIDIA A100\nmig 0", "0", "fastest")
    assert found["devices"] == [] and found["reason"] == "MIG is on and has no instances"


def test_by_uuid_as_torch_writes_it(in_child):
    assert in_child(ONE, TWO, "bbbb-2222")["name"] == "NVIDIA H100 80GB HBM3"
    assert "allowed GPU-aaaa-1111, GPU-bbbb-2222" in in_child(ONE, TWO, "GPU-zzzz")


def test_used_memory_follows_the_script(in_child):
    code = (
        "import time\nfrom msgdas.profiles.device import gpu_with_uuid\nseen = []\n"
        "for _ in range(2):\n    gpu = gpu_with_uuid('GPU-x')\n"
        "    seen.append([gpu.used_bytes, gpu.free_bytes])\n    time.sleep(0.3)\n"
        "print(json.dumps(seen))"
    )
    seen = in_child(code, "gpu GPU-x 1000 8.0 X\nat 0 0 3\nat 0 0.2 700")
    assert seen == [[3, 997], [700, 300]]
