"""The autoscaler of k8s/serving on a real cluster: pods come with what is asked, and go with it."""

import base64
import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.k8s.cluster import IMAGES, ROOT, Cluster, eventually, new_namespace
from tests.k8s.small_service import ANSWERING, SERVE, Clients, small_service

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NAMESPACE, ADAPTER = "scaling", "metrics-adapter"
SECONDS_PER_REPLY = 1.0
HANDLER = f"""
running, lock = 0, threading.Lock()

class Handler(Answering):
    def do_GET(self):
        metrics = f"vargpt_running {{running}}\\nvargpt_queue_length 0\\n"
        self.answer(200, metrics if self.path == "/metrics" else "")

    def do_POST(self):
        global running
        with lock:
            running += 1
        time.sleep({SECONDS_PER_REPLY})
        with lock:
            running -= 1
        self.answer(200, "done")
"""


def scaler() -> dict[str, Any]:
    """The autoscaler of k8s/serving, which waits for less long before it takes a pod away."""
    made = yaml.safe_load((ROOT / "k8s" / "serving" / "scaling.yaml").read_text())
    del made["metadata"]["namespace"]
    made["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 15
    made["spec"]["behavior"]["scaleDown"]["policies"] = [{"type": "Pods", "value": 4, "periodSeconds": 15}]
    return made


def certificate(host: str) -> tuple[str, str]:
    """A certificate for an hour and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem).decode(), private.decode()


def adapter(certified: str, key: str) -> list[dict[str, Any]]:
    """The server of the metric, as its file has it, with its program and a certificate."""
    folder, metadata = Path(__file__).parent, {"name": ADAPTER}
    made = list(yaml.safe_load_all((folder / "metrics_adapter.yaml").read_text()))
    by_kind = {item["kind"]: item["spec"] for item in made if "spec" in item}
    by_kind["APIService"]["caBundle"] = base64.b64encode(certified.encode()).decode()
    by_kind["Deployment"]["template"]["spec"]["containers"][0]["image"] = IMAGES["vargpt-training"]
    code = {"adapter.py": (folder / "metrics_adapter.py").read_text()}
    files = {"tls.crt": certified, "tls.key": key}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": code},
        {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": files},
        *made,
    ]


@pytest.fixture(scope="module")
def cluster(cluster_with_image: Cluster) -> Iterator[Cluster]:
    """A namespace with a service that is busy for a second with each request, and its autoscaler."""
    made = adapter(*certificate(f"{ADAPTER}.{NAMESPACE}.svc"))
    with new_namespace(
        cluster_with_image, NAMESPACE, *small_service(ANSWERING + HANDLER + SERVE), *made, scaler()
    ) as found:
        found.run("rollout", "status", f"deployment/{ADAPTER}", "--timeout", "180s")
        yield found
        found.run("delete", "apiservice", "v1beta1.external.metrics.k8s.io")
        found.run("delete", "clusterrole,clusterrolebinding", "external-metrics-reader")


def replicas(cluster: Cluster) -> int:
    """Pods of the service that are ready."""
    return cluster.get("deployment", "vargpt")["status"].get("readyReplicas", 0)


def test_pods_follow_what_is_asked_for_and_no_request_fails(cluster, record_property):
    eventually(lambda: replicas(cluster) == 2)

    began = time.monotonic()
    with Clients(cluster, 30) as clients:
        eventually(lambda: replicas(cluster) >= 4, 240)
        seconds_up = time.monotonic() - began
    began = time.monotonic()
    eventually(lambda: replicas(cluster) == 2, 240)

    record_property("seconds_to_four_pods", round(seconds_up))
    record_property("seconds_back_to_two", round(time.monotonic() - began))
    record_property("answers", len(clients.answers))
    assert set(clients.answers) == {200} and len(clients.answers) > 100
