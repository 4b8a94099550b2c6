"""An API server whose Deployments come up at once, with pods that count what they are asked."""

import json
from typing import Any
from urllib.parse import unquote

from tests.training.submission.fake_api import FakeApi


def version_tags(weights: str, metrics: dict[str, Any]) -> dict[str, str]:
    """The tags of a registered version with these weights and figures."""
    subject = {"data_md5": "d", "prepared_sha256": "p", "split": "test", "questions": 1, "drawings": 1}
    figures = {"subject": {**subject, "weights_sha256": weights}, **metrics}
    return {"vargpt.weights_sha256": weights, "vargpt.metrics": json.dumps(figures)}


class RunningService(FakeApi):
    """A cluster with the Deployment of the service.

    Args:
        errors: By version, how many of 100 requests fail; without entry, none.
    """

    def __init__(self, errors: dict[str, int]) -> None:
        super().__init__()
        self.errors, self.asked = errors, 0
        labels = {"app.kubernetes.io/name": "vargpt-serving"}
        spec = {
            "replicas": 1,
            "selector": {"matchLabels": dict(labels)},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "vargpt", "image": "vargpt-serving"}]},
            },
        }
        deployment = {"metadata": {"name": "vargpt", "generation": 1}, "spec": spec}
        self.objects["deployments", "vargpt"] = deployment
        self._come_up()

    @property
    def version(self) -> str | None:
        """That all pods of the service serve."""
        labels = self.objects["deployments", "vargpt"]["spec"]["template"]["metadata"]["labels"]
        return labels.get("vargpt.io/version")

    @property
    def was_tried(self) -> bool:
        """Whether a canary was started."""
        return any(request.startswith("POST ") for request in self.requests)

    def _answer(self, method: str, url: Any, body: dict[str, Any]) -> tuple[int, Any]:
        path = unquote(url.path)
        if path.endswith(":3000/proxy/metrics"):
            name = path.split("/")[-3].partition(":")[0]
            return 200, self._metrics(self.objects["pods", name]["metadata"]["labels"]["vargpt.io/version"])
        answer = super()._answer(method, url, body)
        if method != "GET":
            self._come_up()
        return answer

    def _come_up(self) -> None:
        """What the controllers of Kubernetes would do in time."""
        deployments = [item for (kind, _), item in self.objects.items() if kind == "deployments"]
        self.objects = {key: item for key, item in self.objects.items() if key[0] != "pods"}
        for deployment in deployments:
            metadata, spec = deployment["metadata"], deployment["spec"]
            counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), spec["replicas"])
            metadata.setdefault("generation", 1)
            deployment["status"] = {"observedGeneration": metadata["generation"], **counts}
            name = f"{metadata['name']}-0"
            pod = {"metadata": {"name": name, "labels": dict(spec["template"]["metadata"]["labels"])}}
            self.objects["pods", name] = {**pod, "spec": {"containers": []}, "status": {"phase": "Running"}}

    def _metrics(self, version: str) -> str:
        """A hundred requests more than before."""
        self.asked += 100
        failed = self.errors.get(version, 0)
        answered = self.asked * (100 - failed) / 100
        return (
            f'vargpt_requests_total{{route="r",outcome="answered"}} {answered}\n'
            f'vargpt_requests_total{{route="r",outcome="generation_failed"}} {self.asked - answered}\n'
            f"vargpt_reply_seconds_sum {answered}\nvargpt_reply_seconds_count {answered}\n"
        )
