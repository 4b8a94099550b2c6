"""A stage as a job of an operator: PyTorchJob (Training Operator 1.9) or TrainJob (Trainer 2.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.cluster.images import shared_labels
from training.cluster.placement import placement
from training.cluster.pods import (
    IMAGE_VARIABLE,
    METRICS_PORT,
    NAMESPACE,
    NCCL_ENVIRONMENT,
    PARAMS_FILE,
    RDMA_ENVIRONMENT,
    WITHOUT_RDMA,
    Needs,
    container,
    data_mounts,
    data_volumes,
    from_field,
    link_data,
    pod_spec,
    variables,
)
from training.params import STAGES, ClusterParams, Params

TRAINER_ACCOUNT, TRAINER_SECRET = "trainer", "mlflow-trainer"
RUNTIME = "vargpt"
# Retention of a finished job with its pods and logs; results lie on the volume and in MLflow.
KEPT_SECONDS = 3 * 24 * 3600
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
# The operators' names of the container that trains.
PYTORCH_CONTAINER, TRAINJOB_CONTAINER = "pytorch", "node"
# By which the pods of one job are known.
JOB_LABELS = {
    PYTORCH_CONTAINER: "training.kubeflow.org/job-name",
    TRAINJOB_CONTAINER: "jobset.sigs.k8s.io/jobset-name",
}


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What differs between two jobs of the same stage and the same parameters.

    Args:
        image: Full name of the training image, with tag or digest.
        data_md5: Of the data, as data.dvc names it; a job that reads raw data refuses another.
        name: Of the job; the stage's by default.
        api: Of which operator the job is.
        size: What `--size` is given; by default the parameters' own. `$(SIZE)` takes the ConfigMap's.
        queue: LocalQueue of Kueue that admits the job; it starts suspended.
        priority: WorkloadPriorityClass of Kueue; by default the pods' PriorityClass counts.
        rdma: Use InfiniBand or RoCE.
        labels, annotations: Further ones of the job.
    """

    image: str
    data_md5: str
    name: str | None = None
    namespace: str = NAMESPACE
    api: Literal["pytorchjob", "trainjob"] = "pytorchjob"
    size: str | None = None
    queue: str | None = None
    priority: str | None = None
    rdma: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


def render_job(stage: str, params: Params, options: JobOptions) -> dict[str, Any]:
    """The manifest of a stage's job: a PyTorchJob or, for api `trainjob`, a TrainJob.

    A TrainJob names the runtime that `render_runtime` makes from the same parameters.
    """
    render = _pytorch_job if options.api == "pytorchjob" else _train_job
    return render(stage, params, options)


def render_runtime(params: Params, options: JobOptions) -> dict[str, Any]:
    """The TrainingRuntime of TrainJobs: the pod of a PyTorchJob, and when to try again.

    It has no ttlSecondsAfterFinished: Trainer would make the deleted JobSet anew.
    """
    cluster = params.cluster
    reads_data = any(_reads_data(stage, params) for stage in STAGES)
    pod = _worker_pod(TRAINJOB_CONTAINER, "stage1", params, options, reads_data)
    template = {"metadata": {"labels": _pod_labels("")}, "spec": {"restartPolicy": "Never", **pod}}
    replicated = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {**_restart_rules(), "template": template},
        },
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {
            "name": RUNTIME,
            "namespace": options.namespace,
            "labels": {"trainer.kubeflow.org/framework": "torch", **_labels("runtime", options)},
        },
        "spec": {
            "mlPolicy": {"numNodes": cluster.nodes, "torch": {}},
            "template": {
                "spec": {
                    # Workers meet before they are ready.
                    "network": {"publishNotReadyAddresses": True},
                    "successPolicy": {"operator": "All", "targetReplicatedJobs": ["node"]},
                    "failurePolicy": {
                        "maxRestarts": 20,
                        "rules": [
                            {
                                "name": "mistake",
                                "action": "FailJobSet",
                                "onJobFailureReasons": ["PodFailurePolicy"],
                            }
                        ],
                    },
                    "replicatedJobs": [replicated],
                }
            },
        },
    }


def _restart_rules() -> dict[str, Any]:
    """When the pod of a TrainJob is replaced, by its exit code; the launcher limits attempts."""
    return {
        "backoffLimit": 20,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                # A mistake in the configuration or the data: trying again cannot help.
                {"action": "FailJob", "onExitCodes": _exit_codes(2)},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                # Stopped after saving.
                {"action": "Ignore", "onExitCodes": _exit_codes(143)},
            ]
        },
    }


def worker_needs(cluster: ClusterParams, rdma: bool = False) -> Needs:
    """What one worker asks for: a share for each of its processes."""
    processes = processes_per_worker(cluster)
    return Needs(
        cpu=cluster.cpu * processes,
        memory_gib=cluster.memory_gib * processes,
        memory_limit_gib=cluster.memory_limit_gib * processes,
        gpus=cluster.gpus,
        rdma=cluster.gpus if rdma else 0,
    )


def processes_per_worker(cluster: ClusterParams) -> int:
    """One process for each GPU; one on the CPU."""
    return max(cluster.gpus, 1)


def _pytorch_job(stage: str, params: Params, options: JobOptions) -> dict[str, Any]:
    cluster = params.cluster
    run_policy = {
        "activeDeadlineSeconds": cluster.deadline_hours * 3600,
        # The job has succeeded when one worker has; none may keep its GPUs after that.
        "cleanPodPolicy": "Running",
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        **({"suspend": True} if options.queue else {}),
    }
    pod = _worker_pod(PYTORCH_CONTAINER, stage, params, options, _reads_data(stage, params))
    worker = {
        "replicas": cluster.nodes,
        # What the exit codes mean, and when to give up, is training/launching's business.
        "restartPolicy": "ExitCode",
        "template": {"metadata": {"labels": _pod_labels(options.name or stage)}, "spec": pod},
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": _metadata(stage, options),
        "spec": {
            # The operator's own choice would be one process for each core.
            "nprocPerNode": str(processes_per_worker(cluster)),
            # Without a master there is no init container, which the namespace would refuse.
            "elasticPolicy": {
                "rdzvBackend": "c10d",
                "minReplicas": cluster.min_nodes,
                "maxReplicas": cluster.nodes,
            },
            "runPolicy": run_policy,
            "pytorchReplicaSpecs": {"Worker": worker},
        },
    }


def _train_job(stage: str, params: Params, options: JobOptions) -> dict[str, Any]:
    cluster = params.cluster
    resources = worker_needs(cluster, options.rdma).resources()
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(stage, options),
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": RUNTIME,
            },
            **({"suspend": True} if options.queue else {}),
            "activeDeadlineSeconds": cluster.deadline_hours * 3600,
            # Without this section the operator sets no PET_ variables.
            "trainer": {
                "numNodes": cluster.nodes,
                "numProcPerNode": processes_per_worker(cluster),
                "image": options.image,
                "args": _arguments(stage, params, options),
                "resourcesPerNode": resources,
            },
        },
    }


def _worker_pod(
    name: str, stage: str, params: Params, options: JobOptions, reads_data: bool
) -> dict[str, Any]:
    """The pod of a worker, for either operator."""
    cluster = params.cluster
    needs = worker_needs(cluster, options.rdma)
    environment = [from_field("POD_NAME", "metadata.name"), from_field("NODE_NAME", "spec.nodeName")]
    environment += variables({"VARGPT_METRICS_PORT": str(METRICS_PORT), IMAGE_VARIABLE: options.image})
    if cluster.gpus:
        network = RDMA_ENVIRONMENT if options.rdma else WITHOUT_RDMA
        environment += variables(NCCL_ENVIRONMENT | network)
    mounts = data_mounts() if reads_data else []
    worker = container(
        name,
        options.image,
        ["python", "-m", "training.launching"],
        _arguments(stage, params, options),
        needs,
        TRAINER_SECRET,
        mounts,
        environment,
    )
    worker["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    links = [link_data(options.image, options.data_md5, "worker")] if reads_data else []
    volumes = data_volumes() if reads_data else []
    pod = pod_spec([worker], cluster, TRAINER_ACCOUNT, links, volumes)
    return pod | placement(cluster, JOB_LABELS[name])


def _arguments(stage: str, params: Params, options: JobOptions) -> list[str]:
    arguments = [stage, "--params", PARAMS_FILE, "--size", options.size or params.size]
    if params.cluster.min_nodes < params.cluster.nodes:
        # Before a group that lost a node takes in another one.
        arguments += ["--save-seconds", str(params.cluster.save_seconds)]
    return arguments


def _reads_data(stage: str, params: Params) -> bool:
    """Whether a stage reads raw data, not only what `prepare` made of it."""
    return any(dataset.path.startswith("data/") for dataset in getattr(params, stage).mixture)


def _exit_codes(*codes: int) -> dict[str, Any]:
    return {"operator": "In", "values": list(codes)}


def _pod_labels(instance: str) -> dict[str, str]:
    labels = {
        "app.kubernetes.io/name": "vargpt-training",
        "app.kubernetes.io/component": "training",
        "app.kubernetes.io/part-of": "vargpt",
    }
    # Jobs share a runtime, so its pods cannot name theirs.
    return labels | ({"app.kubernetes.io/instance": instance} if instance else {})


def _labels(instance: str, options: JobOptions) -> dict[str, str]:
    of_kueue = {QUEUE_LABEL: options.queue, PRIORITY_LABEL: options.priority}
    queued = {key: value for key, value in of_kueue.items() if value}
    return {**_pod_labels(instance), **shared_labels(options.image), **queued, **options.labels}


def _metadata(stage: str, options: JobOptions) -> dict[str, Any]:
    name = options.name or stage
    return {
        "name": name,
        "namespace": options.namespace,
        "labels": {**_labels(name, options), "vargpt.io/stage": stage},
        "annotations": {"vargpt.io/data-md5": options.data_md5, **options.annotations},
    }
