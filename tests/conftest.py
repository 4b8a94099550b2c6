"""What several test files share: a real MLflow server, and an empty MLflow database to copy."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

START_SECONDS = 120
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "DVC_NO_ANALYTICS": "1",
}
os.environ.update(QUIET)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", help="a folder of golden vectors to check instead of tests/golden")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server process on sqlite that also serves artifacts."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}", server, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_until_healthy(uri: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the MLflow server did not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def _empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables in it; creating them takes seconds, copying them does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_db(_empty_mlflow_database: Path, tmp_path: Path) -> str:
    """The URI of an MLflow store of this test's own, without a server."""
    return f"sqlite:///{shutil.copy(_empty_mlflow_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def client(mlflow_db: str):
    """MLflow's own client of that store."""
    from mlflow import MlflowClient

    return MlflowClient(mlflow_db)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are sent, and sent again, at once."""
    from training.tracking import sender

    monkeypatch.setattr(sender, "SEND_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(sender, "RETRY_SECONDS", (0.1, 0.2))


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Waits until something is true, and fails when it does not become so."""

    def wait(condition: Callable[[], object], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)

    return wait
