"""Fetches small result files from the volume of a job, through the log of a pod that prints them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.errors import UserError
from training.submission.api import REQUEST_SECONDS, ApiServer, is_conflict
from training.submission.pack_files import unpack
from training.submission.pod_reasons import waiting_reason

READER_SECONDS = 300
POLL_SECONDS = 1.0
# A pod that only reads needs neither what trains nor what is trained on.
VOLUMES = ("workspace", "tmp")
RESOURCES = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}


def fetch_files(server: ApiServer, name: str, pod: dict[str, Any], paths: Sequence[str], root: Path) -> None:
    """Write files of a job's volume to the same places below `root`.

    Args:
        name: Of the job; the pod's name is made of it.
        pod: The spec of a pod like those of the job.
        paths: Relative to the working folder of the job; of a folder, its small files.

    Raises:
        UserError: a file is not there, or the pod does not start.
    """
    reader = reader_pod(server.namespace, f"{name}-files", pod, paths)
    _delete(server, reader)
    _create(server, reader)
    try:
        lines = _log_of(server, reader)
    finally:
        _delete(server, reader)
    unpack(lines, root)


def reader_pod(namespace: str, name: str, pod: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """The manifest of a pod that prints files of a job's volume."""
    template = pod["containers"][0]
    container = {
        **{key: template[key] for key in ("image", "imagePullPolicy", "workingDir", "securityContext")},
        "name": "files",
        "command": ["python", "-m", "training.submission.pack_files"],
        "args": list(paths),
        "resources": RESOURCES,
        "volumeMounts": [mount for mount in template["volumeMounts"] if mount["name"] in VOLUMES],
    }
    kept = ("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "securityContext")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/component": "results", "app.kubernetes.io/part-of": "vargpt"},
        },
        "spec": {
            **{key: pod[key] for key in kept if key in pod},
            "restartPolicy": "Never",
            "activeDeadlineSeconds": READER_SECONDS,
            "containers": [container],
            "volumes": [volume for volume in pod["volumes"] if volume["name"] in VOLUMES],
        },
    }


def _create(server: ApiServer, reader: dict[str, Any]) -> None:
    from kubernetes.client import ApiException

    until = time.monotonic() + READER_SECONDS
    while True:
        try:
            create = server.core.create_namespaced_pod
            server.ask(create, server.namespace, reader, _request_timeout=REQUEST_SECONDS)
            return
        except ApiException as error:
            # One of an earlier attempt is on its way out.
            if not is_conflict(error) or time.monotonic() > until:
                raise
            time.sleep(POLL_SECONDS)


def _delete(server: ApiServer, reader: dict[str, Any]) -> None:
    delete = server.core.delete_namespaced_pod
    name = reader["metadata"]["name"]
    server.find(delete, name, server.namespace, grace_period_seconds=0, _request_timeout=REQUEST_SECONDS)


def _log_of(server: ApiServer, reader: dict[str, Any]) -> list[str]:
    name = reader["metadata"]["name"]
    reason, until = "", time.monotonic() + READER_SECONDS
    while time.monotonic() < until:
        found = server.find(
            server.core.read_namespaced_pod, name, server.namespace, _request_timeout=REQUEST_SECONDS
        )
        if found is None:
            raise UserError(f"pod {name} was deleted before it had read the results")
        reason = waiting_reason(found) or reason
        if found.status.phase in ("Succeeded", "Failed"):
            log = server.ask(
                server.core.read_namespaced_pod_log, name, server.namespace, _request_timeout=REQUEST_SECONDS
            )
            if found.status.phase == "Failed":
                raise UserError(f"the results cannot be read: {log.strip() or found.status.reason}")
            return log.split()
        time.sleep(POLL_SECONDS)
    raise UserError(f"pod {name}, which reads the results, did not start: {reason or 'no reason is known'}")
