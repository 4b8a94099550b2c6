"""A server of external.metrics.k8s.io for tests: choices that wait and run in the ready pods of a service.

Runs in a pod, from a ConfigMap, with the standard library alone; clusters have KEDA or prometheus-adapter.
"""

import json
import re
import ssl
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API_SERVER = "https://kubernetes.default.svc"
VERSION = "external.metrics.k8s.io/v1beta1"
METRIC, SUMMANDS = "vargpt_in_flight", "vargpt_running|vargpt_queue_length"
SELECTOR = "app.kubernetes.io%2Fcomponent%3Dserving"


def ready_addresses(namespace: str) -> Iterator[str]:
    """Addresses of the pods of the service that answer."""
    request = urllib.request.Request(
        f"{API_SERVER}/api/v1/namespaces/{namespace}/pods?labelSelector={SELECTOR}",
        headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"},
    )
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, context=trusted, timeout=5) as reply:
        pods = json.load(reply)["items"]
    for pod in pods:
        conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", ())}
        if conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]:
            yield pod["status"]["podIP"]


def in_flight(namespace: str) -> float:
    """Choices that wait and run in all of them."""
    total = 0.0
    for address in ready_addresses(namespace):
        with urllib.request.urlopen(f"http://{address}:3000/metrics", timeout=3) as reply:
            lines = re.findall(rf"^(?:{SUMMANDS})(?:{{.*}})? (\S+)$", reply.read().decode(), re.MULTILINE)
        total += sum(map(float, lines))
    return total


class Handler(BaseHTTPRequestHandler):
    """What the API server asks when it passes a question on."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The list of metrics, or the value of the one there is."""
        path = self.path.partition("?")[0].rstrip("/")
        asked = re.fullmatch(f"/apis/{VERSION}/namespaces/([^/]+)/{METRIC}", path)
        if asked:
            value = {
                "metricName": METRIC,
                "metricLabels": {},
                "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "value": f"{round(in_flight(asked[1]) * 1000)}m",
            }
            self.answer("ExternalMetricValueList", VERSION, items=[value], metadata={})
        else:
            resource = {"name": METRIC, "singularName": "", "namespaced": True, "verbs": ["get"]}
            resource["kind"] = "ExternalMetricValueList"
            self.answer("APIResourceList", "v1", groupVersion=VERSION, resources=[resource])

    def answer(self, kind: str, version: str, **rest: object) -> None:
        """Reply with an object."""
        body = json.dumps({"kind": kind, "apiVersion": version, **rest}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the API server asks every few seconds."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("", 6443), Handler)
    secured = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secured.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
    server.socket = secured.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
