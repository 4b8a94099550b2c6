"""Rendezvous settings of torch's elastic agent, from the PET_ variables that an operator sets."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from model.errors import UserError

# Read by torch's C++ parts when they are loaded.
LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """How many nodes and processes a job has, and where they meet.

    Args:
        num_processes: Of this node.
        endpoint: `host:port` of the node that hosts the rendezvous store; empty if there is one node only.
        run_id: Of the job, the same on all of its nodes.
    """

    min_nodes: int = 1
    max_nodes: int = 1
    num_processes: int = 1
    endpoint: str = ""
    backend: str = "c10d"
    run_id: str = "vargpt"

    @property
    def is_single_process(self) -> bool:
        """Whether one process is all, without an operator that reads its exit code."""
        return not self.endpoint and self.num_processes == 1

    @property
    def is_elastic(self) -> bool:
        """Whether the group also goes on with fewer nodes, and takes others in later."""
        return self.min_nodes < self.max_nodes

    @property
    def hosts_store(self) -> bool:
        """Whether this node hosts the rendezvous store, as exactly one node of a job does."""
        host, name = self.endpoint.rpartition(":")[0], socket.gethostname()
        # Under Trainer v2, the name of a pod is the first part of its name in the network.
        return host == name or host.partition(".")[0] == name


def import_torch() -> None:
    """Import torch such that its C++ parts report errors only, in this process but not in those it starts.

    The store ends before some node has said its last word to it, and torch prints stacks of C++ for that.
    """
    told = os.environ.get(LOG_LEVEL)
    os.environ.setdefault(LOG_LEVEL, "ERROR")
    import torch.distributed.launcher.api  # noqa: F401

    if told is None:
        del os.environ[LOG_LEVEL]


def parse_count(name: str, text: str) -> int:
    """A count of at least 1; `auto`, `cpu` and `gpu` count the devices of this machine."""
    if text in ("auto", "cpu", "gpu"):
        import_torch()
        from torch.distributed.run import determine_local_world_size

        try:
            return determine_local_world_size(text)
        except ValueError as error:
            raise UserError(f"{name} cannot be {text} here: {error}") from None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{name} must count at least 1, not {text!r}")
    return int(text)


def read_rendezvous(environment: Mapping[str, str], num_processes: str | None) -> Rendezvous:
    """The settings that an operator injected; without any, one node.

    Args:
        num_processes: Count on this node, or `auto`, `cpu`, `gpu`; None for that of the environment.

    Raises:
        UserError: names the variable or option that is no count.
    """
    min_nodes, _, max_nodes = environment.get("PET_NNODES", "1").partition(":")
    return Rendezvous(
        min_nodes=parse_count("PET_NNODES", min_nodes),
        max_nodes=parse_count("PET_NNODES", max_nodes or min_nodes),
        num_processes=parse_count("--nproc", num_processes or environment.get("PET_NPROC_PER_NODE", "1")),
        endpoint=_endpoint(environment),
        backend=environment.get("PET_RDZV_BACKEND", "c10d"),
        run_id=environment.get("PET_RDZV_ID", "vargpt"),
    )


def _endpoint(environment: Mapping[str, str]) -> str:
    """Where nodes meet: an endpoint as the Training Operator gives it, or Trainer's first node; or empty."""
    if endpoint := environment.get("PET_RDZV_ENDPOINT"):
        return endpoint
    host = environment.get("PET_MASTER_ADDR")
    return f"{host}:{environment.get('PET_MASTER_PORT', '29500')}" if host else ""
