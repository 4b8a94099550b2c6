"""Laws of the rendezvous: both operators' variables name the same meeting."""

import socket

from training.launching.rendezvous import read_rendezvous


def test_trainer_v2_names_its_first_node_where_the_training_operator_names_an_endpoint():
    variables = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "stage1-node-0-0.stage1",
        "PET_MASTER_PORT": "29500",
    }

    found = read_rendezvous(variables, None)

    assert (found.endpoint, found.min_nodes, found.max_nodes) == ("stage1-node-0-0.stage1:29500", 2, 2)
    assert not found.hosts_store
    assert not found.is_single_process


def test_the_node_whose_name_the_endpoint_begins_with_hosts_the_store():
    name = socket.gethostname()

    assert read_rendezvous({"PET_MASTER_ADDR": f"{name}.stage1"}, None).hosts_store
    assert read_rendezvous({"PET_RDZV_ENDPOINT": f"{name}:23456"}, None).hosts_store
