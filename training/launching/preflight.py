"""Checks a node before training begins there: what is wrong is named in one sentence, before hours are lost.

What only another manifest, image or volume can mend is a UserError, which ends the job; what may be better on
another node, or later, is a NodeFault, after which the operator tries again.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from model.errors import UserError
from training.checkpoints import step_folders
from training.launching.attempts import newest_checkpoint_bytes
from training.registry.code_hash import room_hashes
from training.registry.lineage import CODE, config_sha256

MEBIBYTE = 1 << 20
# NCCL and workers that load data exchange batches there; containers get 64 MiB unless told otherwise.
SHARED_MEMORY_BYTES = 256 * MEBIBYTE
# Of one process before it has loaded anything: the interpreter with torch.
PROCESS_BYTES = 512 * MEBIBYTE
# For logs, journals and manifests beside the checkpoints.
DISK_BYTES = 64 * MEBIBYTE
# GPU memory that the driver itself, or a display, may hold.
GPU_USED_MEBIBYTE = 2048
RESOLVE_SECONDS = 120.0
# Environment variables of a job: hashes of the submitter's code as JSON; GPUs that its pod asks for.
EXPECTED_CODE, EXPECTED_GPUS = "VARGPT_EXPECTED_CODE", "VARGPT_GPUS"
GPU_QUERY = ("nvidia-smi", "--query-gpu=index,memory.used,memory.total", "--format=csv,noheader,nounits")


class NodeFault(OSError):  # noqa: N818 - it reads as what happened
    """Something of this node is broken or taken; another node, or a later start, may do."""


@dataclass(frozen=True)
class Node:
    """What is checked, and where it is looked for.

    Args:
        outputs: The stage's folder of checkpoints.
        num_processes: That will run here.
        endpoint: Of the rendezvous, `host:port`; empty where there is one node only.
        devices, shared_memory, infiniband: Folders of the machine, others in tests.
    """

    outputs: Path
    num_processes: int
    endpoint: str
    environment: Mapping[str, str]
    devices: Path = Path("/dev")
    shared_memory: Path = Path("/dev/shm")
    infiniband: Path = Path("/sys/class/infiniband")


def check_node(node: Node) -> None:
    """Run all checks, the quickest first.

    Raises:
        UserError, NodeFault: the first thing that is wrong.
    """
    for check in CHECKS:
        check(node)


def check_code(node: Node) -> None:
    """The code of this image is what the submitter of the job has."""
    expected = json.loads(node.environment.get(EXPECTED_CODE, "{}"))
    rooms = room_hashes(CODE) if expected else {}
    for key, known in expected.items():
        package, _, room = key.partition(".")
        if (rooms[package].get(room) if room else config_sha256(rooms[package])) != known:
            raise UserError(
                f"the image holds other code of {key} than was submitted: build it anew and push it"
            )


def check_gpus(node: Node) -> None:
    """All GPUs are there, and nobody else's data lies on them."""
    found = [path for path in node.devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    expected = int(node.environment.get(EXPECTED_GPUS, "0"))
    if len(found) < expected:
        raise NodeFault(
            f"the pod asks for {expected} GPUs, {len(found)} are there: the node or its driver is faulty"
        )
    if not found:
        return
    if node.num_processes > len(found):
        raise UserError(
            f"{node.num_processes} processes have {len(found)} GPUs: ask for one each, or set --nproc"
        )
    try:
        done = subprocess.run(GPU_QUERY, capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError:
        return
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise NodeFault(f"the GPUs do not answer: {error}") from None
    check_gpu_memory(done.stdout)


def check_gpu_memory(answer: str) -> None:
    """No GPU in the answer of nvidia-smi, `index, used, total` in MiB a line, is taken."""
    for line in answer.splitlines():
        index, used, total = (part.strip() for part in line.split(","))
        if not (used.isdecimal() and total.isdecimal()):
            raise NodeFault(f"GPU {index} does not tell its memory ({used}, {total}): it is broken or lost")
        if int(used) > GPU_USED_MEBIBYTE:
            raise NodeFault(f"GPU {index} is taken: {used} of {total} MiB are somebody else's")


def check_shared_memory(node: Node) -> None:
    """Processes of one node have room to exchange batches."""
    if node.num_processes == 1 and EXPECTED_GPUS not in node.environment:
        return
    total = shutil.disk_usage(node.shared_memory).total
    if total < SHARED_MEMORY_BYTES:
        raise UserError(
            f"{node.shared_memory} holds {total // MEBIBYTE} MiB, {SHARED_MEMORY_BYTES // MEBIBYTE} are "
            "needed: mount an emptyDir of medium Memory there"
        )


def check_memory(node: Node) -> None:
    """There is memory for the processes to start at all."""
    free, needed = available_memory(Path("/sys/fs/cgroup")), PROCESS_BYTES * node.num_processes
    if free < needed:
        raise NodeFault(
            f"{free // MEBIBYTE} MiB of memory are free, {node.num_processes} processes start with "
            f"{needed // MEBIBYTE}"
        )


def available_memory(cgroup: Path) -> int:
    """Bytes that may still be taken: of the machine, and of the limit of this container."""
    free = psutil.virtual_memory().available
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        # Pages of files count as used, but make room.
        cached = re.search(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(), re.MULTILINE)
        free = min(free, int(text) - int(used.read_text()) + (int(cached[1]) if cached else 0))
    return free


def check_disk(node: Node) -> None:
    """A checkpoint as large as the last one has room, once what was not finished before is deleted."""
    place = next(path for path in (node.outputs, *node.outputs.parents) if path.is_dir())
    free = shutil.disk_usage(place).free + step_folders.unfinished_bytes(node.outputs)
    needed = newest_checkpoint_bytes(node.outputs) + DISK_BYTES
    if free < needed:
        raise UserError(
            f"the volume of {node.outputs} has {free // MEBIBYTE} MiB free, a checkpoint needs "
            f"{needed // MEBIBYTE}: make room or a larger volume"
        )
    if not os.access(place, os.W_OK):
        raise UserError(
            f"{place} cannot be written by user {os.getuid()}: set fsGroup, or the volume's owner"
        )


def check_fabric(node: Node) -> None:
    """The network devices that NCCL is told to use are there and up."""
    wanted = node.environment.get("NCCL_SOCKET_IFNAME", "")
    names = [name for _, name in socket.if_nameindex()]
    if (
        wanted
        and wanted[0] not in "^="
        and not any(name.startswith(tuple(wanted.split(","))) for name in names)
    ):
        raise UserError(f"NCCL_SOCKET_IFNAME is {wanted}; the interfaces here are {', '.join(names)}")
    adapters = node.environment.get("NCCL_IB_HCA", "")
    if not adapters or adapters[0] in "^=" or node.environment.get("NCCL_IB_DISABLE") == "1":
        return
    prefixes = tuple(name.partition(":")[0] for name in adapters.split(","))
    found = [path for path in sorted(node.infiniband.glob("*")) if path.name.startswith(prefixes)]
    if not found:
        raise NodeFault(
            f"NCCL_IB_HCA is {adapters}, and no such adapter is here: the pod asks for no RDMA device"
        )
    for state in (path for adapter in found for path in sorted(adapter.glob("ports/*/state"))):
        if "ACTIVE" not in (text := state.read_text().strip()):
            raise NodeFault(f"port {state.parent.name} of {state.parts[-4]} is {text}")


def check_endpoint(
    node: Node,
    seconds: float = RESOLVE_SECONDS,
    resolve: Callable[[str, int], Iterable[object]] = socket.getaddrinfo,
) -> None:
    """The name of the node where all meet resolves; the operator makes it while this pod starts."""
    host, _, port = node.endpoint.rpartition(":")
    until = time.monotonic() + seconds
    while host:
        try:
            resolve(host, int(port))
            return
        except socket.gaierror as error:
            if time.monotonic() > until:
                raise NodeFault(f"{host}, where the workers meet, has no address: {error.strerror}") from None
            time.sleep(1)


CHECKS = (
    check_disk,
    check_shared_memory,
    check_memory,
    check_gpus,
    check_fabric,
    check_endpoint,
    check_code,
)
