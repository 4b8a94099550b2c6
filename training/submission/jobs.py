"""Jobs of a cluster, of three kinds: PyTorchJob, TrainJob and plain Job; made, found, deleted, and how they
are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import UserError
from training.submission.api import REQUEST_SECONDS, ApiServer, is_conflict, refusal

SUSPENDED, PENDING, RUNNING, RESTARTING = "Suspended", "Pending", "Running", "Restarting"
SUCCEEDED, FAILED = "Succeeded", "Failed"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
STAGE_LABEL = "vargpt.io/stage"


@dataclass(frozen=True)
class JobKind:
    """A kind of job in Kubernetes' API.

    Args:
        job_label: Label of a job's pods with its name.
        container: Of a pod, that does the work; None for a Job, whose steps are several.
        words: What it calls the phases that end a job.
    """

    kind: str
    group: str
    version: str
    plural: str
    job_label: str
    container: str | None
    words: Mapping[str, str]

    @property
    def api_version(self) -> str:
        """As it stands in manifests."""
        return f"{self.group}/{self.version}"


PYTORCHJOB = JobKind(
    "PyTorchJob",
    "kubeflow.org",
    "v1",
    "pytorchjobs",
    "training.kubeflow.org/job-name",
    "pytorch",
    {"Succeeded": SUCCEEDED, "Failed": FAILED},
)
TRAINJOB = JobKind(
    "TrainJob",
    "trainer.kubeflow.org",
    "v1alpha1",
    "trainjobs",
    "jobset.sigs.k8s.io/jobset-name",
    "node",
    {"Complete": SUCCEEDED, "Failed": FAILED},
)
JOB = JobKind(
    "Job",
    "batch",
    "v1",
    "jobs",
    "batch.kubernetes.io/job-name",
    None,
    # The first one when all is done, and maybe long before the controller has tidied up.
    {"SuccessCriteriaMet": SUCCEEDED, "Complete": SUCCEEDED, "Failed": FAILED},
)
KINDS = (PYTORCHJOB, TRAINJOB, JOB)


@dataclass(frozen=True)
class JobState:
    """How a job is.

    Args:
        phase: Suspended, Pending, Running, Restarting, Succeeded or Failed.
        message: What the operator says of it.
        queue: The queue that admits it; None where it has none.
    """

    phase: str
    message: str = ""
    queue: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.phase in (SUCCEEDED, FAILED)


def kind_of(manifest: Mapping[str, Any]) -> JobKind:
    """The kind of a manifest."""
    return next(kind for kind in KINDS if kind.kind == manifest["kind"])


class Jobs:
    """The jobs of one namespace."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server

    def create(self, manifest: Mapping[str, Any]) -> bool:
        """Make a job as its manifest says; False if one of that name is there already.

        Raises:
            UserError: the API server, or a webhook or policy of it, refuses the manifest.
        """
        from kubernetes.client import ApiException

        kind = kind_of(manifest)
        try:
            if kind is PYTORCHJOB:
                self.server.ask(self.server.training.create_job, self._as_model(manifest))
            else:
                create = self.server.objects.create_namespaced_custom_object
                self.server.ask(create, *self._place(kind), dict(manifest), _request_timeout=REQUEST_SECONDS)
        except ApiException as error:
            if is_conflict(error) and self.find(kind, manifest["metadata"]["name"]):
                return False
            name = manifest["metadata"]["name"]
            raise UserError(f"the cluster does not take {kind.kind} {name}: {refusal(error)}") from None
        return True

    def find(self, kind: JobKind, name: str) -> dict[str, Any] | None:
        """A job as the API server has it; None where there is none."""
        if kind is PYTORCHJOB:
            found = self.server.find(self.server.training.get_job, name, timeout=REQUEST_SECONDS[1])
            return (
                None if found is None else self.server.training.api_client.sanitize_for_serialization(found)
            )
        get = self.server.objects.get_namespaced_custom_object
        return self.server.find(get, *self._place(kind), name, _request_timeout=REQUEST_SECONDS)

    def find_any(self, name: str) -> tuple[JobKind, dict[str, Any]]:
        """A job of any kind. UserError where there is none."""
        for kind in KINDS:
            if found := self.find(kind, name):
                return kind, found
        raise UserError(f"there is no job {name} in namespace {self.server.namespace}")

    def all_of_stages(self) -> Iterator[tuple[JobKind, dict[str, Any]]]:
        """Every job that carries a stage's label, the oldest first."""
        found = []
        for kind in KINDS:
            listed = self.server.find(
                self.server.objects.list_namespaced_custom_object,
                *self._place(kind),
                label_selector=STAGE_LABEL,
                _request_timeout=REQUEST_SECONDS,
            )
            found += [(kind, job) for job in (listed or {"items": []})["items"]]
        yield from sorted(found, key=lambda pair: pair[1]["metadata"]["creationTimestamp"])

    def delete(self, kind: JobKind, name: str) -> None:
        """Delete a job and, with it, its pods, which are asked to save."""
        delete = self.server.objects.delete_namespaced_custom_object
        self.server.find(
            delete,
            *self._place(kind),
            name,
            propagation_policy="Background",
            _request_timeout=REQUEST_SECONDS,
        )

    def pods(self, kind: JobKind, name: str) -> list[Any]:
        """The pods of a job, by name."""
        listed = self.server.ask(
            self.server.core.list_namespaced_pod,
            self.server.namespace,
            label_selector=f"{kind.job_label}={name}",
            _request_timeout=REQUEST_SECONDS,
        )
        return sorted(listed.items, key=lambda pod: pod.metadata.name)

    def _place(self, kind: JobKind) -> tuple[str, str, str, str]:
        return kind.group, kind.version, self.server.namespace, kind.plural

    def _as_model(self, manifest: Mapping[str, Any]) -> Any:
        """The SDK's model; given a dict of metadata it makes the job, and fails afterwards."""
        from kubeflow.training import KubeflowOrgV1PyTorchJob
        from kubernetes.client import V1ObjectMeta

        metadata = manifest["metadata"]
        return KubeflowOrgV1PyTorchJob(
            api_version=manifest["apiVersion"],
            kind=manifest["kind"],
            metadata=V1ObjectMeta(
                name=metadata["name"],
                namespace=self.server.namespace,
                labels=metadata.get("labels"),
                annotations=metadata.get("annotations"),
            ),
            spec=manifest["spec"],
        )


def state_of(kind: JobKind, job: Mapping[str, Any]) -> JobState:
    """How a job is, from its conditions; the last that is true counts, a final one before all others."""
    spec, status = job.get("spec", {}), job.get("status") or {}
    queue = (job["metadata"].get("labels") or {}).get(QUEUE_LABEL)
    true = [one for one in status.get("conditions") or [] if one.get("status") == "True"]
    for condition in true:
        if condition["type"] in kind.words:
            return JobState(kind.words[condition["type"]], condition.get("message", ""), queue)
    policy = spec.get("runPolicy", {}) if kind is PYTORCHJOB else spec
    if policy.get("suspend"):
        return JobState(SUSPENDED, "", queue)
    if kind is PYTORCHJOB:
        phases = [one["type"] for one in true if one["type"] in (RUNNING, RESTARTING)]
        return JobState(phases[-1] if phases else PENDING, true[-1].get("message", "") if true else "", queue)
    # A Job whose pods are done is not complete at once: what is true of it then is not in `words`.
    active = status.get("active") or true or any(one.get("active") for one in status.get("jobsStatus") or [])
    return JobState(RUNNING if active else PENDING, "", queue)
