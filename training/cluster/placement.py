"""Where the workers of a job go: which nodes, how near to each other, how long on a node that is lost."""

from typing import Any

from training.cluster.pods import GPU
from training.params import ClusterParams

# Seconds that a pod stays bound to a node that does not answer; Kubernetes' own default is 300.
LOST_NODE_SECONDS = 30
# Preferred, not required.
GPU_PRODUCTS = ("NVIDIA-H200", "NVIDIA-H100-80GB-HBM3", "NVIDIA-A100-SXM4-80GB")


def placement(cluster: ClusterParams, job_label: str) -> dict[str, Any]:
    """Where workers go: spread over nodes, close together, on GPU nodes where there are GPUs.

    Args:
        job_label: Label whose value the pods of one job share.
    """
    training = {"labelSelector": {"matchLabels": {"app.kubernetes.io/component": "training"}}}
    of_a_job = {**training, "matchLabelKeys": [job_label]}
    lost = [
        {
            "key": f"node.kubernetes.io/{reason}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_SECONDS,
        }
        for reason in ("unreachable", "not-ready")
    ]
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    placed = {"tolerations": lost, "topologySpreadConstraints": [{**spread, **of_a_job}]}
    if not cluster.gpus:
        return placed
    products = {"key": f"{GPU}.product", "operator": "In", "values": list(GPU_PRODUCTS)}
    near = [
        {"weight": weight, "podAffinityTerm": {"topologyKey": key, **of_a_job}}
        for weight, key in ((50, "topology.kubernetes.io/rack"), (100, "topology.kubernetes.io/zone"))
    ]
    return {
        "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}, *lost],
        "topologySpreadConstraints": placed["topologySpreadConstraints"],
        "affinity": {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 100, "preference": {"matchExpressions": [products]}}
                ]
            },
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": near},
        },
    }
