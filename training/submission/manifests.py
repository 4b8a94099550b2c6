"""The objects of one submission: the job as training/cluster renders it, with the parameters it is given."""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.errors import UserError
from training.cluster.images import image_names
from training.cluster.jobs import JobOptions, render_job, render_runtime
from training.cluster.pipeline_jobs import reads_codes, render_backbones, render_release
from training.cluster.pods import GPU, PARAMS_FILE, variables
from training.launching.preflight import EXPECTED_CODE, EXPECTED_GPUS
from training.params import STAGES, Params, load_params
from training.submission.identity import DATA_POINTER, RELEASE, StageIdentity, stage_identity

TRAINING_IMAGE, PACKAGING_IMAGE = "vargpt-training", "vargpt-packaging"
# Where a job finds what was submitted with it.
SUBMITTED = "/submitted"
# Steps of Kubernetes' plain jobs, by stage; the jobs of k8s/ do several in one.
STEPS_BEFORE_STAGE1 = {"prepare": ("fetch", "prepare"), "backbones": ("backbones",), "encode": ("encode",)}
STEPS_AFTER_STAGE3 = {"evaluate": ("evaluate",), RELEASE: ("promote", "package")}
Api = Literal["pytorchjob", "trainjob"]


@dataclass(frozen=True)
class Submission:
    """What is made in the cluster for one stage.

    Args:
        job: The manifest of the job.
        settings: The ConfigMap with parameters and data pointer.
        runtime: The TrainingRuntime of a TrainJob, its own because it mounts the ConfigMap; else None.
        pod: A pod like those of the job, for looking at its volumes.
    """

    identity: StageIdentity
    job: dict[str, Any]
    settings: dict[str, Any]
    runtime: dict[str, Any] | None
    pod: dict[str, Any]


def make_submission(
    stage: str,
    root: Path,
    params_file: Path,
    size: str | None = None,
    *,
    api: Api = "pytorchjob",
    namespace: str,
    queue: str | None = None,
    priority: str | None = None,
) -> Submission:
    """The objects of a stage of the pipeline.

    Raises:
        UserError: names the file or field that is missing or wrong.
    """
    params = load_params(params_file, size)
    images = image_names(root)
    identity = stage_identity(stage, root, params, images[TRAINING_IMAGE])
    options = JobOptions(
        image=identity.image,
        data_md5=identity.data_md5,
        name=identity.name,
        namespace=namespace,
        api=api,
        queue=queue,
        priority=priority,
        labels={"vargpt.io/stage": stage},
        annotations={"vargpt.io/commit": identity.commit or "unknown"},
    )
    job, runtime = _rendered(stage, params, options, images[PACKAGING_IMAGE])
    pod = _pod_of(runtime or job)
    reader = copy.deepcopy(pod)
    _give(pod, identity)
    if runtime:
        _give_train_job(job, runtime, identity)
    return Submission(identity, job, _settings(identity, params_file, root, namespace), runtime, reader)


def is_job(stage: str, params: Params) -> bool:
    """Whether a stage is worth a job: where no stage reads codes of pictures, `data encode` only says so."""
    return stage != "encode" or reads_codes(params)


def _rendered(
    stage: str, params: Params, options: JobOptions, packaging_image: str
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The manifest of a stage's job and, for a TrainJob, its runtime; parts may be shared until copied."""
    if stage in STAGES:
        runtime = render_runtime(params, options) if options.api == "trainjob" else None
        return copy.deepcopy((render_job(stage, params, options), runtime))
    if stage in STEPS_BEFORE_STAGE1:
        job = render_backbones(params, options, STEPS_BEFORE_STAGE1[stage])
    elif stage in STEPS_AFTER_STAGE3:
        job = render_release(params, options, packaging_image, STEPS_AFTER_STAGE3[stage])
    else:
        raise UserError(f"{stage} is no stage that runs in a cluster")
    return copy.deepcopy(job), None


def _pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The spec of the pods of a job or runtime."""
    spec = manifest["spec"]
    if manifest["kind"] == "PyTorchJob":
        return spec["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    if manifest["kind"] == "TrainingRuntime":
        return spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return spec["template"]["spec"]


def _give(pod: dict[str, Any], identity: StageIdentity) -> None:
    """Mount the submitted parameters, in place of those of the image."""
    pod["volumes"].append({"name": "submitted", "configMap": {"name": identity.name}})
    for container in _containers(pod):
        if PARAMS_FILE in container.get("args", ()):
            container["args"] = _with_submitted(container["args"])
        container["volumeMounts"].append({"name": "submitted", "mountPath": SUBMITTED, "readOnly": True})
        told = {EXPECTED_CODE: json.dumps(identity.code, sort_keys=True)}
        if gpus := container["resources"]["limits"].get(GPU):
            told[EXPECTED_GPUS] = gpus
        container["env"] = [*container.get("env", ()), *variables(told)]


def _give_train_job(job: dict[str, Any], runtime: dict[str, Any], identity: StageIdentity) -> None:
    """A runtime of this job's own, whose pods mount its parameters."""
    runtime["metadata"]["name"] = job["spec"]["runtimeRef"]["name"] = identity.name
    job["spec"]["trainer"]["args"] = _with_submitted(job["spec"]["trainer"]["args"])


def _with_submitted(arguments: Sequence[str]) -> list[str]:
    return [f"{SUBMITTED}/params.yaml" if one == PARAMS_FILE else one for one in arguments]


def _containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from pod.get("initContainers", ())
    yield from pod["containers"]


def _settings(identity: StageIdentity, params_file: Path, root: Path, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": identity.name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "vargpt", "vargpt.io/stage": identity.stage},
        },
        "data": {
            "params.yaml": params_file.read_text(encoding="utf-8"),
            DATA_POINTER: (root / DATA_POINTER).read_text(encoding="utf-8"),
        },
    }
