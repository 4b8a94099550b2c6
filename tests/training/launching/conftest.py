"""Launchers as processes of their own, with small programs in place of training."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def start(tmp_path):
    """Starts a launcher; it and all processes below it that still run are killed afterwards."""
    running = []

    def start_launcher(*arguments: str, **operator_variables: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
        environment |= {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
            "OMP_NUM_THREADS": "1",
            **operator_variables,
        }
        outputs = str(tmp_path / "outputs")
        command = [sys.executable, "-m", "training.launching", "--outputs", outputs, *arguments]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        running.append(process)
        return process

    yield start_launcher
    for process in running:
        for below in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            below.send_signal(signal.SIGKILL)
        process.kill()
        process.communicate()
