"""A server of some lines on a cluster in place of the service, and clients that ask it without pause."""

import subprocess
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import yaml

from tests.k8s.cluster import IMAGES, K8S, Cluster

# Of the proxy to the API server.
PORT = "8765"
# What servers begin with; then comes their `class Handler(Answering)`, then SERVE.
ANSWERING = """
import os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Answering(BaseHTTPRequestHandler):
    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass
"""
SERVE = """
ThreadingHTTPServer(("", 3000), Handler).serve_forever()
"""
# One that fails as its version says: 2 on every request, 3 at its start; 5 is slow.
VERSIONED = (
    ANSWERING
    + """
version = int(os.environ["VARGPT_VERSION"])
seconds = 1.0 if version == 5 else 0.02
if version == 3:
    sys.exit("error: the weights of version 3 are damaged")
counts, lock = {"answered": 0, "generation_failed": 0}, threading.Lock()

class Handler(Answering):
    def do_GET(self):
        name = "vargpt_requests_total"
        outcomes = [f'{name}{{route="r",outcome="{key}"}} {value}' for key, value in counts.items()]
        replies = [f"vargpt_reply_seconds_sum {counts['answered'] * seconds}"]
        replies += [f"vargpt_reply_seconds_count {counts['answered']}"]
        self.answer(200, "\\n".join([*outcomes, *replies, ""]) if self.path == "/metrics" else str(version))

    def do_POST(self):
        is_bad = version == 2
        time.sleep(seconds)
        with lock:
            counts["generation_failed" if is_bad else "answered"] += 1
        self.answer(500 if is_bad else 200, str(version))
"""
    + SERVE
)


def small_service(server: str) -> list[dict[str, Any]]:
    """The Deployment of k8s/serving and its Service, with a server of some lines in place of the real one."""
    made = yaml.safe_load((K8S / "serving" / "deployment.yaml").read_text())
    del made["metadata"]["namespace"]
    made["spec"]["replicas"] = 1
    # What a first `vargpt deploy` would set.
    made["spec"]["template"]["metadata"]["labels"] |= {
        "vargpt.io/version": "1",
        "vargpt.io/weights": "1" * 12,
    }
    pod = made["spec"]["template"]["spec"]
    for key in ("serviceAccountName", "priorityClassName"):
        del pod[key]
    pod["terminationGracePeriodSeconds"] = 10
    container = pod["containers"][0]
    container["image"] = IMAGES["vargpt-training"]
    container["command"] = ["python", "-c", server]
    container["resources"] = {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}}
    container["volumeMounts"] = container["volumeMounts"][1:]
    pod["volumes"] = pod["volumes"][1:]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "vargpt"},
        "spec": {
            "selector": {"app.kubernetes.io/component": "serving"},
            "ports": [{"port": 80, "targetPort": 3000}],
        },
    }
    return [made, service]


class Clients:
    """Clients that ask a service without pause, through a proxy of the API server.

    Attributes:
        answers: Status of each answer; 0 where there was none.
        texts: What was answered with status 200.
    """

    def __init__(self, cluster: Cluster, count: int, service: str = "vargpt") -> None:
        self.cluster, self.count, self.service = cluster, count, service
        self.answers: list[int] = []
        self.texts: list[str] = []
        self._is_over = threading.Event()

    def __enter__(self) -> "Clients":
        command = [
            str(self.cluster.program),
            "--kubeconfig",
            self.cluster.kubeconfig,
            "proxy",
            "--port",
            PORT,
        ]
        self.proxy = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(2)
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(self.count)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self.threads:
            thread.join(10)
        self.proxy.terminate()
        self.proxy.wait()

    def _ask(self) -> None:
        namespace = f"http://127.0.0.1:{PORT}/api/v1/namespaces/{self.cluster.namespace}"
        url = f"{namespace}/services/{self.service}:80/proxy/v1"
        while not self._is_over.is_set():
            try:
                with urllib.request.urlopen(url, b"{}", timeout=30) as reply:
                    self.texts.append(reply.read().decode())
                    self.answers.append(reply.status)
            except urllib.error.HTTPError as error:
                self.answers.append(error.code)
            except OSError:
                # No answer at all.
                self.answers.append(0)
            time.sleep(0.05)
