"""Plain Jobs around the stages: fetch to encode before the first; evaluate to package after the last.

The steps of a Job run one after another, as its init containers and its container; each has only the secrets
that it needs.
"""

from collections.abc import Sequence
from typing import Any

from training.cluster.images import shared_labels
from training.cluster.jobs import TRAINER_ACCOUNT, TRAINER_SECRET, JobOptions
from training.cluster.pods import (
    CHECK_DATA,
    DVC_SETUP,
    IMAGE_VARIABLE,
    LIGHT,
    PARAMS_FILE,
    WEIGHTS_CLAIM,
    WORKSPACE,
    Needs,
    container,
    data_mounts,
    data_volumes,
    link_data,
    pod_spec,
    variables,
)
from training.params import STAGES, Params

FETCH, PREPARE, BACKBONES, ENCODE = "fetch", "prepare", "backbones", "encode"
EVALUATE, PROMOTE, PACKAGE = "evaluate", "promote", "package"
RELEASE_STEPS = (EVALUATE, PROMOTE, PACKAGE)
PROMOTER_ACCOUNT, PROMOTER_SECRET, REMOTE_SECRET = "promoter", "mlflow-promoter", "dvc-remote"
MODELS_CLAIM, MODELS = "models", "/models"


def render_backbones(params: Params, options: JobOptions, steps: Sequence[str] = ()) -> dict[str, Any]:
    """The Job before stage 1: what all stages read, on the volumes.

    Args:
        steps: Some of fetch (raw data, into the cache), prepare, backbones (imported or trained) and encode
            (codes of pictures that are drawn), in that order; by default all that the stages need.
    """
    steps = steps or (FETCH, PREPARE, BACKBONES, *([ENCODE] if reads_codes(params) else []))
    volumes = data_volumes(is_read_only=False)
    if _imports_weights(params):
        volumes.append(
            {"name": "weights", "persistentVolumeClaim": {"claimName": WEIGHTS_CLAIM, "readOnly": True}}
        )
    before = [_fetch_data(options)] if FETCH in steps else []
    before.append(link_data(options.image, options.data_md5, "job"))
    made = [_data_step(step, params, options) for step in steps if step != FETCH]
    pod = pod_spec([made[-1]], params.cluster, TRAINER_ACCOUNT, [*before, *made[:-1]], volumes)
    return _job(options.name or BACKBONES, params, options, pod)


def reads_codes(params: Params) -> bool:
    """Whether a stage reads codes of pictures, computed beforehand, in place of pixels."""
    return any(getattr(params, stage).cached_codes for stage in STAGES)


def render_release(
    params: Params, options: JobOptions, packaging_image: str, steps: Sequence[str] = RELEASE_STEPS
) -> dict[str, Any]:
    """The Job after stage 3: measures the model, makes it champion if its gates are open, packages it.

    Args:
        steps: Some of evaluate, promote, package, in that order.
    """
    made = [_release_step(step, params, options, packaging_image) for step in steps]
    volumes, account = data_volumes(), TRAINER_ACCOUNT
    # Who may only submit stages may measure as well, but not this.
    if set(steps) != {EVALUATE}:
        volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": MODELS_CLAIM}})
        account = PROMOTER_ACCOUNT
    before = [link_data(options.image, options.data_md5, "job"), *made[:-1]]
    pod = pod_spec([made[-1]], params.cluster, account, before, volumes)
    return _job(options.name or "release", params, options, pod)


def _imports_weights(params: Params) -> bool:
    return any(params.weights.model_dump().values())


def _data_step(step: str, params: Params, options: JobOptions) -> dict[str, Any]:
    """One step of the Job before stage 1 that reads the data, as a container."""
    module, arguments = {
        PREPARE: ("training.commands", ["data", PREPARE]),
        BACKBONES: ("training.launching", [BACKBONES]),
        ENCODE: ("training.commands", ["data", ENCODE]),
    }[step]
    mounts = data_mounts()
    if _imports_weights(params):
        mounts.append({"name": "weights", "mountPath": f"{WORKSPACE}/weights", "readOnly": True})
    command, arguments = ["python", "-m", module], [*arguments, *_size(params, options)]
    told = variables({IMAGE_VARIABLE: options.image} if step == BACKBONES else {})
    return container(step, options.image, command, arguments, _needs(params), TRAINER_SECRET, mounts, told)


def _size(params: Params, options: JobOptions) -> list[str]:
    """The options that say which parameters a step follows."""
    return ["--params", PARAMS_FILE, "--size", options.size or params.size]


def _release_step(step: str, params: Params, options: JobOptions, packaging_image: str) -> dict[str, Any]:
    """One step of the Job after stage 3, as a container."""
    size = _size(params, options)
    image, arguments, secret = {
        EVALUATE: (options.image, ["evaluate", *size], TRAINER_SECRET),
        PROMOTE: (
            options.image,
            ["promote", *size, "--by", "promoter", "--weights-volume", f"{MODELS}/weights"],
            PROMOTER_SECRET,
        ),
        PACKAGE: (packaging_image, ["package"], PROMOTER_SECRET),
    }[step]
    mounts = [] if step == PACKAGE else data_mounts()
    # Weights are copied to this volume once, when they are registered; packaging links them.
    if step != EVALUATE:
        mounts.append({"name": "models", "mountPath": MODELS})
    environment = variables({"BENTOML_HOME": f"{MODELS}/bentoml"} if step == PACKAGE else {})
    command = ["python", "-m", "training.commands"]
    needs = _needs(params) if step == EVALUATE else LIGHT
    return container(step, image, command, arguments, needs, secret, mounts, environment)


def _fetch_data(options: JobOptions) -> dict[str, Any]:
    """The step that fills the cache; where the data lies on a server, its account is in a secret."""
    made = container(
        FETCH,
        options.image,
        ["sh", "-ec"],
        ['cd "$(mktemp -d)"\n' + DVC_SETUP + CHECK_DATA.format(code=2) + "exec dvc fetch data.dvc\n"],
        LIGHT,
        secret=None,
        environment=variables({"DATA_MD5": options.data_md5}),
    )
    made["envFrom"].append({"secretRef": {"name": REMOTE_SECRET, "optional": True}})
    made["workingDir"] = "/tmp"
    made["volumeMounts"] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "dvc-cache", "mountPath": "/dvc-cache"},
    ]
    return made


def _needs(params: Params) -> Needs:
    """What a step that is one process asks for."""
    cluster = params.cluster
    return Needs(
        cpu=cluster.cpu,
        memory_gib=cluster.memory_gib,
        memory_limit_gib=cluster.memory_limit_gib,
        gpus=min(cluster.gpus, 1),
    )


def _job(name: str, params: Params, options: JobOptions, pod: dict[str, Any]) -> dict[str, Any]:
    """A Job that tries again after a fault, but not after the user's mistake or a closed gate."""
    fail = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}}
    ignore = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    labels = {
        "app.kubernetes.io/name": f"vargpt-{name}",
        "app.kubernetes.io/component": "pipeline",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/part-of": "vargpt",
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": options.namespace,
            "labels": {**labels, **shared_labels(options.image), **options.labels},
            "annotations": {"vargpt.io/data-md5": options.data_md5, **options.annotations},
        },
        "spec": {
            "backoffLimit": 3,
            "activeDeadlineSeconds": params.cluster.deadline_hours * 3600,
            "ttlSecondsAfterFinished": 3 * 24 * 3600,
            "podFailurePolicy": {"rules": [fail, ignore]},
            "template": {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", **pod}},
        },
    }
