"""Laws of the checks before training: each fault is named in one sentence, with the right exit code."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from model.errors import UserError
from training.launching import preflight
from training.launching.preflight import MEBIBYTE, Node, NodeFault
from training.registry.code_hash import room_hashes

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def node(tmp_path):
    """Makes a node whose devices are those of an empty folder."""

    def make(num_processes: int = 1, endpoint: str = "", **environment: str) -> Node:
        folders = {name: tmp_path / name for name in ("devices", "infiniband")}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        return Node(tmp_path / "outputs" / "stage1", num_processes, endpoint, environment, **folders)

    return make


def give_gpus(node: Node, count: int) -> None:
    for index in range(count):
        (node.devices / f"nvidia{index}").touch()
    (node.devices / "nvidiactl").touch()


def give_port(node: Node, adapter: str, state: str) -> None:
    port = node.infiniband / adapter / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text(f"{state}\n")


def test_a_healthy_node_passes_all_checks(node, monkeypatch):
    monkeypatch.setattr(preflight, "SHARED_MEMORY_BYTES", 0)

    preflight.check_node(node(2, f"{socket.gethostname()}:23456"))


def test_a_gpu_that_is_missing_is_counted_and_tried_again_elsewhere(node):
    one = node(8, VARGPT_GPUS="8")
    give_gpus(one, 7)

    with pytest.raises(NodeFault, match="the pod asks for 8 GPUs, 7 are there"):
        preflight.check_gpus(one)


def test_more_processes_than_gpus_are_the_users_mistake(node):
    one = node(4)
    give_gpus(one, 2)

    with pytest.raises(UserError, match="4 processes have 2 GPUs"):
        preflight.check_gpus(one)


def test_a_gpu_that_somebody_else_fills_is_named():
    preflight.check_gpu_memory("0, 4, 81559\n1, 511, 81559\n")

    with pytest.raises(NodeFault, match="GPU 1 is taken: 40211 of 81559 MiB are somebody else's"):
        preflight.check_gpu_memory("0, 4, 81559\n1, 40211, 81559\n")


def test_a_lost_gpu_is_named():
    with pytest.raises(NodeFault, match="GPU 3 does not tell its memory"):
        preflight.check_gpu_memory("3, [Unknown Error], [Unknown Error]\n")


def test_the_shared_memory_of_a_container_without_a_volume_is_too_small(node, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(64 * MEBIBYTE, 0, 0))

    with pytest.raises(UserError, match="holds 64 MiB, 256 are needed: mount an emptyDir of medium Memory"):
        preflight.check_shared_memory(node(2))
    preflight.check_shared_memory(node(1))


def test_a_disk_without_room_for_another_checkpoint_is_named_with_both_figures(node, monkeypatch):
    one = node()
    step = one.outputs / "work" / "step_5"
    step.mkdir(parents=True)
    (step / "COMPLETE").touch()
    (step / "weights").write_bytes(bytes(30 * MEBIBYTE))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 90 * MEBIBYTE))

    with pytest.raises(UserError, match="stage1 has 90 MiB free, a checkpoint needs 94"):
        preflight.check_disk(one)
    # What a killed process left is deleted by the one that goes on.
    unfinished = one.outputs / "work" / "step_6.tmp"
    unfinished.mkdir()
    (unfinished / "weights").write_bytes(bytes(10 * MEBIBYTE))
    preflight.check_disk(one)


def test_the_limit_of_a_container_counts_not_the_memory_of_the_machine(tmp_path):
    for name, text in {
        "memory.max": "1000000000\n",
        "memory.current": "700000000\n",
        "memory.stat": "anon 5\ninactive_file 100000000\n",
    }.items():
        (tmp_path / name).write_text(text)

    assert preflight.available_memory(tmp_path) == 400_000_000


def test_a_network_interface_that_is_not_there_is_named_with_those_that_are(node):
    with pytest.raises(UserError, match=r"NCCL_SOCKET_IFNAME is ib7; the interfaces here are .*lo"):
        preflight.check_fabric(node(NCCL_SOCKET_IFNAME="ib7"))
    preflight.check_fabric(node(NCCL_SOCKET_IFNAME="lo"))


def test_an_adapter_whose_port_is_down_is_named(node):
    one = node(NCCL_IB_HCA="mlx5")
    give_port(one, "mlx5_0", "4: ACTIVE")
    preflight.check_fabric(one)

    give_port(one, "mlx5_3", "1: DOWN")

    with pytest.raises(NodeFault, match="port 1 of mlx5_3 is 1: DOWN"):
        preflight.check_fabric(one)


def test_adapters_that_the_pod_did_not_ask_for_are_missed(node):
    with pytest.raises(NodeFault, match="no such adapter is here"):
        preflight.check_fabric(node(NCCL_IB_HCA="mlx5"))
    preflight.check_fabric(node(NCCL_IB_HCA="mlx5", NCCL_IB_DISABLE="1"))


def test_a_meeting_place_without_an_address_is_named(node):
    def nowhere(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(NodeFault, match="stage1-worker-0, where the workers meet, has no address"):
        preflight.check_endpoint(node(2, "stage1-worker-0:23456"), seconds=0, resolve=nowhere)


def test_an_image_with_other_code_than_was_submitted_is_refused_by_the_room(node):
    rooms = room_hashes(ROOT)
    known = {"training.stages": rooms["training"]["stages"], "model.network": rooms["model"]["network"]}
    preflight.check_code(node(VARGPT_EXPECTED_CODE=json.dumps(known)))

    with pytest.raises(UserError, match=r"the image holds other code of training.stages than was submitted"):
        preflight.check_code(node(VARGPT_EXPECTED_CODE=json.dumps(known | {"training.stages": "0"})))


def test_a_launcher_says_what_is_wrong_and_ends_with_the_code_that_fits(start, tmp_path):
    mistake = start("stage1", VARGPT_EXPECTED_CODE=json.dumps({"training.stages": "0"}))
    fault = start("stage1", VARGPT_GPUS="99")

    for process, code, sentence in (
        (mistake, 2, "error: the image holds other code"),
        (fault, 138, "error: the pod asks for 99 GPUs"),
    ):
        _, said = process.communicate(timeout=120)
        assert process.returncode == code
        assert sentence in said and "Traceback" not in said
    assert not os.path.exists(tmp_path / "outputs")
