"""What an operator tells the workers of a job."""

import socket


def operator_variables(number_of_nodes: int, least: int | None = None) -> dict[str, str]:
    """Environment variables that the operator sets in a worker; this machine hosts the store.

    Args:
        least: With how many nodes the group goes on; by default it needs all of them.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return {
        "PET_NNODES": f"{least or number_of_nodes}:{number_of_nodes}",
        "PET_NPROC_PER_NODE": "1",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"{socket.gethostname()}:{port}",
    }


def of_another_node(variables: dict[str, str]) -> dict[str, str]:
    """The same for a worker on this machine that does not host the store."""
    endpoint = variables["PET_RDZV_ENDPOINT"].replace(socket.gethostname(), "localhost")
    return {**variables, "PET_RDZV_ENDPOINT": endpoint}
