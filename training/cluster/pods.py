"""The pod of a training job, as a plain dict: container, volumes, environment, security.

It passes the level `restricted` of the pod security standards, writes to volumes only, and has no token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.params import ClusterParams

# What k8s/platform makes, by name.
NAMESPACE = "vargpt"
SETTINGS = "vargpt"
WORKSPACE_CLAIM, CACHE_CLAIM, WEIGHTS_CLAIM = "workspace", "dvc-cache", "published-weights"
# The numeric user of our images.
USER_ID = 10001
PARAMS_FILE = "/app/params.yaml"
WORKSPACE = "/workspace"
GPU = "nvidia.com/gpu"
METRICS_PORT = 9400
# The variable by which what trains learns its image's name, which no pod can ask for without a token.
IMAGE_VARIABLE = "VARGPT_IMAGE"
NCCL_ENVIRONMENT = {
    "NCCL_DEBUG": "WARN",
    "NCCL_SOCKET_IFNAME": "eth0",
    # A collective that hangs is aborted, and every process writes which collectives it has taken part in.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_FR_DUMP_TEMP_FILE": f"{WORKSPACE}/flight-recorder/$(POD_NAME)_",
}
WITHOUT_RDMA = {"NCCL_IB_DISABLE": "1"}
RDMA_ENVIRONMENT = {"NCCL_IB_HCA": "mlx5", "NCCL_NET_GDR_LEVEL": "PHB"}
RDMA_RESOURCE = "rdma/hca"

POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
# DVC's files lie in the image; what data.dvc names is linked from the cache, which is another volume.
DVC_SETUP = """\
cp -R /app/.dvc /app/data.dvc .
dvc config --local core.no_scm true
dvc config --local cache.dir /dvc-cache
dvc config --local cache.type symlink
"""
CHECK_DATA = """\
if ! grep -q "md5: $DATA_MD5" data.dvc; then
  echo "the job names data $DATA_MD5, the image holds:"; cat data.dvc; exit {code}
fi
"""
# The Training Operator makes a pod anew, without end, whose init container has failed, whatever its exit
# code. So a worker begins without its data, and ends with the exit code of a user's mistake.
LINK_DATA = {
    "worker": CHECK_DATA.format(code=0) + 'dvc checkout data.dvc || echo "run k8s/backbones.yaml first"\n',
    "job": CHECK_DATA.format(code=2) + "exec dvc checkout data.dvc\n",
}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a container asks for.

    Args:
        cpu: In cores; there is no limit.
        memory_gib: Requested.
        memory_limit_gib: At which the container is killed.
    """

    cpu: float
    memory_gib: int
    memory_limit_gib: int
    gpus: int = 0
    rdma: int = 0

    def resources(self) -> dict[str, Any]:
        """Requests and limits of a container."""
        devices = {GPU: self.gpus, RDMA_RESOURCE: self.rdma}
        limits = {name: str(count) for name, count in devices.items() if count}
        return {
            "requests": {"cpu": quantity(self.cpu), "memory": f"{self.memory_gib}Gi", **limits},
            "limits": {"memory": f"{self.memory_limit_gib}Gi", **limits},
        }


# Of a step that only handles files.
LIGHT = Needs(cpu=0.2, memory_gib=1, memory_limit_gib=4)


def quantity(cores: float) -> str:
    """A number of cores as Kubernetes writes it."""
    return str(int(cores)) if cores == int(cores) else f"{round(cores * 1000)}m"


def variables(values: dict[str, str]) -> list[dict[str, Any]]:
    """Environment variables of a container."""
    return [{"name": name, "value": value} for name, value in values.items()]


def from_field(name: str, path: str) -> dict[str, Any]:
    """An environment variable that holds a field of the pod itself."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def container(
    name: str,
    image: str,
    command: Sequence[str],
    arguments: Sequence[str],
    needs: Needs,
    secret: str | None,
    mounts: Sequence[dict[str, Any]] = (),
    environment: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """A container that works in the shared workspace and finds the tracking server.

    Args:
        secret: With the account at the tracking server; None for containers that do not track.
    """
    sources: list[dict[str, Any]] = [{"configMapRef": {"name": SETTINGS}}]
    if secret:
        sources.append({"secretRef": {"name": secret}})
    made = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "args": list(arguments),
        "workingDir": WORKSPACE,
        "env": list(environment),
        "envFrom": sources,
        "resources": needs.resources(),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "workspace", "mountPath": WORKSPACE},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            *mounts,
        ],
    }
    return {key: value for key, value in made.items() if value or key != "env"}


def pod_spec(
    containers: Sequence[dict[str, Any]],
    cluster: ClusterParams,
    account: str,
    init_containers: Sequence[dict[str, Any]] = (),
    volumes: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """A pod of these containers, under a service account whose token it does not get."""
    made = {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "priorityClassName": "vargpt-training",
        # Time to finish a step and save.
        "terminationGracePeriodSeconds": cluster.save_seconds,
        "securityContext": POD_SECURITY,
        "initContainers": list(init_containers),
        "containers": list(containers),
        "volumes": [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": WORKSPACE_CLAIM}},
            {"name": "tmp", "emptyDir": {"sizeLimit": f"{cluster.scratch_gib}Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{cluster.shm_gib}Gi"}},
            *volumes,
        ],
    }
    return {key: value for key, value in made.items() if value or key != "initContainers"}


def data_volumes(is_read_only: bool = True) -> list[dict[str, Any]]:
    """The volume of DVC's cache, and one of this pod alone with links into it."""
    claim = {"claimName": CACHE_CLAIM, "readOnly": True} if is_read_only else {"claimName": CACHE_CLAIM}
    return [
        {"name": "dvc-cache", "persistentVolumeClaim": claim},
        {"name": "data", "emptyDir": {"sizeLimit": "4Gi"}},
    ]


def data_mounts() -> list[dict[str, Any]]:
    """Where a container finds the data: `data` in the workspace, as links into the cache."""
    return [
        {"name": "dvc-cache", "mountPath": "/dvc-cache", "readOnly": True},
        {"name": "data", "mountPath": f"{WORKSPACE}/data", "subPath": "data", "readOnly": True},
    ]


def link_data(image: str, data_md5: str, kind: Literal["worker", "job"]) -> dict[str, Any]:
    """The init container that checks which data the job names, and links it from the cache."""
    made = container(
        "data",
        image,
        ["sh", "-ec"],
        [DVC_SETUP + LINK_DATA[kind]],
        LIGHT,
        secret=None,
        environment=variables({"DATA_MD5": data_md5}),
    )
    made["workingDir"] = "/dvc"
    made["volumeMounts"] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "dvc-cache", "mountPath": "/dvc-cache", "readOnly": True},
        {"name": "data", "mountPath": "/dvc"},
    ]
    return made
