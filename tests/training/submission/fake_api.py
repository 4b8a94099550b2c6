"""A small API server over HTTP that can be away; a real cluster cannot be told when to fail."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

_PLACE = re.compile(
    r"/(?:api/v1|apis/[^/]+/[^/]+)/namespaces/[^/]+/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?P<log>/log)?"
)


class FakeApi:
    """Objects by (plural, name), and logs of pods as lines with time stamps.

    Attributes:
        refuse: Answers in place of the next ones, as (status, message); they are used up.
        lose_answers: How many of the next requests are carried out, and their answers lost.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.logs: dict[str, list[str]] = {}
        self.refuse: list[tuple[int, str]] = []
        self.lose_answers = 0
        self.requests: list[str] = []
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        """Answer, at the address of before."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                api._handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def kubeconfig(self, folder: Path) -> Path:
        """A file that names this server."""
        path = folder / "kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "current-context": "fake",
                    "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "contexts": [
                        {"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": "ns"}}
                    ],
                    "users": [{"name": "me", "user": {}}],
                }
            )
        )
        return path

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        url = urlparse(request.path)
        self.requests.append(f"{request.command} {url.path}")
        length = int(request.headers.get("Content-Length", 0))
        body = json.loads(request.rfile.read(length)) if length else {}
        status, answer = self.refuse.pop(0) if self.refuse else self._answer(request.command, url, body)
        if self.lose_answers:
            self.lose_answers -= 1
            request.close_connection = True
            request.connection.close()
            return
        if status >= 400:
            answer = {"kind": "Status", "message": answer, "code": status}
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _answer(self, method: str, url: Any, body: dict[str, Any]) -> tuple[int, Any]:
        match = _PLACE.fullmatch(url.path)
        assert match, url.path
        plural, name = match["plural"], match["name"]
        if match["log"]:
            return 200, "".join(f"{line}\n" for line in self.logs.get(name, []))
        if method == "POST":
            name = body["metadata"]["name"]
            if (plural, name) in self.objects:
                return 409, f"{plural} {name} already exists"
            body["metadata"] |= {"uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
            self.objects[plural, name] = body
            return 201, body
        if name is None:
            items = [item for (kind, _), item in self.objects.items() if kind == plural]
            return 200, {"items": [item for item in items if _matches(item, url.query)]}
        if (plural, name) not in self.objects:
            return 404, f"{plural} {name} not found"
        if method == "DELETE":
            return 200, self.objects.pop((plural, name))
        if method in ("PUT", "PATCH"):
            _merge(self.objects[plural, name], body)
        return 200, self.objects[plural, name]


def _merge(target: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _matches(item: dict[str, Any], query: str) -> bool:
    labels = item["metadata"].get("labels", {})
    for term in parse_qs(query).get("labelSelector", [""])[0].split(","):
        key, _, value = term.partition("=")
        if key and (key not in labels or (value and labels[key] != value)):
            return False
    return True


def pytorchjob(name: str, *conditions: str, **spec: Any) -> dict[str, Any]:
    """A job with these conditions true, one after another."""
    told = [{"type": one, "status": "True", "message": f"it is {one}"} for one in conditions]
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "labels": {"vargpt.io/stage": "stage1"}, "uid": "u"},
        "spec": {"pytorchReplicaSpecs": {}, "runPolicy": {}, **spec},
        "status": {"conditions": told, "replicaStatuses": {}},
    }


def pod(job: str, index: int, state: dict[str, Any], **status: Any) -> dict[str, Any]:
    """A worker whose container is in a state, as the kubelet writes it."""
    container = {
        "name": "pytorch",
        "state": state,
        "image": "i",
        "imageID": "i",
        "ready": True,
        "restartCount": 0,
    }
    labels = {"training.kubeflow.org/job-name": job}
    return {
        "metadata": {"name": f"{job}-worker-{index}", "uid": f"{job}-{index}", "labels": labels},
        "spec": {"containers": [{"name": "pytorch"}]},
        "status": {"phase": "Running", "containerStatuses": [container], **status},
    }
