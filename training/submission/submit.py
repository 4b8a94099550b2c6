"""Submits a stage of the pipeline as a job, or finds the job that does the same, and follows it."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError
from training.launching.exit_codes import DONE
from training.submission.api import REQUEST_SECONDS, ApiServer, is_conflict
from training.submission.follow import JobFollower, Outcome
from training.submission.identity import stage_outputs
from training.submission.jobs import (
    FAILED,
    STAGE_LABEL,
    JobKind,
    Jobs,
    kind_of,
    state_of,
)
from training.submission.manifests import Submission
from training.submission.pack_files import small_files
from training.submission.result_files import fetch_files

# Of a job: the hash of the result files that it left, by which a later job of the same place is noticed.
RESULT_ANNOTATION = "vargpt.io/results"
TRAINER_GROUP = ("trainer.kubeflow.org", "v1alpha1")


@dataclass(frozen=True)
class Submitted:
    """A job in the cluster that does what was submitted.

    Args:
        is_new: Made by this call; False for one that was there.
    """

    kind: JobKind
    name: str
    is_new: bool


class Submitter:
    """Submits stages of the repository `root`.

    Args:
        say: Takes a line for the user.
    """

    def __init__(self, server: ApiServer, root: Path, say: Callable[[str], None]) -> None:
        self.server, self.root, self.say = server, root, say
        self.jobs = Jobs(server)

    def submit(self, submission: Submission) -> Submitted:
        """Make the job, unless it is there already; one that failed is made anew.

        Raises:
            UserError: another job of the stage is at work in the same folders, or the cluster refuses.
        """
        kind, name = kind_of(submission.job), submission.identity.name
        found = self.jobs.find(kind, name)
        if found and state_of(kind, found).phase == FAILED:
            self.say(f"{name} failed before: it is made anew")
            self._delete(kind, name)
            found = None
        if found:
            self.say(f"{name} is there already: attached to it")
            return Submitted(kind, name, False)
        self._refuse_beside_another(submission)
        owned = [self._make_settings(submission)]
        if submission.runtime:
            owned.append(self._make_runtime(submission.runtime))
        is_new = self.jobs.create(submission.job)
        self._own(kind, name, owned)
        self.say(f"{name} is submitted" if is_new else f"{name} is there already: attached to it")
        return Submitted(kind, name, is_new)

    def run(self, submission: Submission) -> Outcome:
        """Submit, follow to the end, and fetch the files that dvc.yaml names."""
        submitted = self.submit(submission)
        outcome = JobFollower(self.jobs, submitted.kind, submitted.name, self.say).to_end()
        if outcome.exit_code != DONE:
            return outcome
        if not self._fetch(submission, submitted):
            self.say(f"what {submitted.name} made was replaced since: it is made anew")
            self._delete(submitted.kind, submitted.name)
            return self.run(submission)
        return outcome

    def _fetch(self, submission: Submission, submitted: Submitted) -> bool:
        """Fetch the result files; False if they are of a later job, which worked in the same folders."""
        paths = stage_outputs(submission.identity.stage, self.root)
        fetch_files(self.server, submitted.name, submission.pod, paths, self.root)
        found = results_sha256(self.root, paths)
        job = self.jobs.find(submitted.kind, submitted.name)
        known = (job or {}).get("metadata", {}).get("annotations", {}).get(RESULT_ANNOTATION)
        if known is None and job is not None:
            self._patch(submitted.kind, submitted.name, {RESULT_ANNOTATION: found})
        return known in (None, found)

    def _refuse_beside_another(self, submission: Submission) -> None:
        stage = submission.identity.stage
        for kind, job in self.jobs.all_of_stages():
            if job["metadata"]["labels"][STAGE_LABEL] == stage and not state_of(kind, job).has_ended:
                name = job["metadata"]["name"]
                raise UserError(
                    f"job {name}, of other parameters, code or data, is at work on {stage}: wait for it "
                    f"(vargpt logs {name}), or end it (vargpt cancel {name})"
                )

    def _delete(self, kind: JobKind, name: str) -> None:
        self.jobs.delete(kind, name)
        while self.jobs.find(kind, name):
            time.sleep(1)

    def _make_settings(self, submission: Submission) -> tuple[Callable[..., Any], str]:
        from kubernetes.client import ApiException

        core, name = self.server.core, submission.identity.name
        place = (self.server.namespace, submission.settings)
        try:
            self.server.ask(core.create_namespaced_config_map, *place, _request_timeout=REQUEST_SECONDS)
        except ApiException as error:
            if not is_conflict(error):
                raise
            self.server.ask(
                core.replace_namespaced_config_map, name, *place, _request_timeout=REQUEST_SECONDS
            )

        def patch(body: dict[str, Any]) -> None:
            core.patch_namespaced_config_map(
                name, self.server.namespace, body, _request_timeout=REQUEST_SECONDS
            )

        return patch, name

    def _make_runtime(self, runtime: dict[str, Any]) -> tuple[Callable[..., Any], str]:
        from kubernetes.client import ApiException

        objects, name = self.server.objects, runtime["metadata"]["name"]
        place = (*TRAINER_GROUP, self.server.namespace, "trainingruntimes")
        try:
            create = objects.create_namespaced_custom_object
            self.server.ask(create, *place, runtime, _request_timeout=REQUEST_SECONDS)
        except ApiException as error:
            if not is_conflict(error):
                raise

        def patch(body: dict[str, Any]) -> None:
            objects.patch_namespaced_custom_object(*place, name, body, _request_timeout=REQUEST_SECONDS)

        return patch, name

    def _own(self, kind: JobKind, name: str, owned: list[tuple[Callable[..., Any], str]]) -> None:
        """Let what was made for a job be deleted with it."""
        job = self.jobs.find(kind, name)
        if job is None:
            return
        owner = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "name": name,
            "uid": job["metadata"]["uid"],
        }
        for patch, _ in owned:
            self.server.ask(patch, {"metadata": {"ownerReferences": [owner]}})

    def _patch(self, kind: JobKind, name: str, annotations: dict[str, str]) -> None:
        place = (kind.group, kind.version, self.server.namespace, kind.plural, name)
        body = {"metadata": {"annotations": annotations}}
        patch = self.server.objects.patch_namespaced_custom_object
        self.server.find(patch, *place, body, _request_timeout=REQUEST_SECONDS)


def results_sha256(root: Path, paths: list[str]) -> str:
    """The hash of result files as they lie, and of the small files of folders."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path}\n".encode())
        for file in small_files(root / path):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
