"""The whole way of published weights at full size, on this machine: `python -m bench.rehearsal FOLDER`.

Writes a checkpoint of the published layout with random bfloat16 weights, imports it, compares it with its
source, registers and packages it, serves it on the CPU, and asks for text and for a picture over HTTP. Of
each step it measures seconds, work of the processor, peak memory and bytes on disk. At 7b it takes 40 GB of
disk; `--layers 2` is a short trial.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.process_memory import MemoryWatch, cpu_seconds, disk_bytes
from bench.rehearsal_folder import STEPS, Rehearsal
from serving.client import Server, chat

ROOT = Path(__file__).resolve().parent.parent
SERVE = "serve"
ALL_STEPS = (*STEPS, SERVE)
# Nothing ends early for being slow: a processor answers where a GPU is meant to.
HOURS = 4 * 3600.0
SERVING = {
    "VARGPT_DEVICE": "cpu",
    "VARGPT_WARM_UP": "0",
    "VARGPT_LIMIT_DEADLINE_SECONDS": str(HOURS),
    "VARGPT_LIMIT_STALL_SECONDS": str(HOURS),
    "BENTOML_DO_NOT_TRACK": "True",
}
QUESTION = "What is seven times six?"
PROMPT = "A red seven on white."


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.rehearsal", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where everything is written; report.json stays there")
    parser.add_argument("--layers", type=int, help="so many layers of each part at most; default: all")
    parser.add_argument("--only", default=",".join(ALL_STEPS), help=f"steps: {','.join(ALL_STEPS)}")
    parser.add_argument("--max-tokens", type=int, default=6, help="of the reply to the question")
    parser.add_argument("--no-picture", action="store_true", help="ask for text alone")
    parser.add_argument(
        "--no-guidance", action="store_true", help="draw without guidance: half of the tokens to compute"
    )
    parser.add_argument("--keep", action="store_true", help="keep weights and checkpoint at the end")
    return parser.parse_args(arguments)


class Measurements:
    """Seconds, memory and disk of each step, written down after every one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "report.json"
        self.found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    @contextmanager
    def step(self, name: str, pid: Callable[[], int], **facts: Any) -> Iterator[dict[str, Any]]:
        """Measure the processes below `pid` while the block runs; what it puts into the dict is kept, too."""
        before, began = disk_bytes(self.folder), time.monotonic()
        with MemoryWatch(pid) as watch:
            yield facts
        facts |= {
            "seconds": round(time.monotonic() - began, 1),
            "peak_bytes": watch.peak,
            "peak_own_bytes": watch.peak_own,
            "disk_bytes_added": disk_bytes(self.folder) - before,
        }
        self.found[name] = facts
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")
        sys.stdout.write(f"{name}: {json.dumps(facts)}\n")
        sys.stdout.flush()


def run_step(name: str, rehearsal: Rehearsal, measurements: Measurements) -> None:
    """One step in a process of its own, whose memory is that of the step alone."""
    command = [sys.executable, "-m", "bench.rehearsal_steps", name, *rehearsal.arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | rehearsal.environment, stdout=subprocess.PIPE
    )
    with measurements.step(name, lambda: process.pid) as facts:
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{name} ended with exit code {process.returncode}")
        facts |= json.loads(output.splitlines()[-1])


def serve(rehearsal: Rehearsal, options: argparse.Namespace, measurements: Measurements) -> None:
    """Serve the bento that was packaged, and ask."""
    os.environ.update(rehearsal.environment | SERVING)
    server = Server(measurements.found["package"]["bento_tag"], ready_seconds=HOURS)
    with measurements.step("start service", lambda: server.process.pid) as facts:
        server.__enter__()
        facts["cpu_seconds"] = round(cpu_seconds(server.process.pid), 1)
    try:
        with _answering(measurements, "answer with text", server.process.pid) as facts:
            answer = chat(
                server.url, QUESTION, timeout=HOURS, max_tokens=options.max_tokens, modalities=["text"]
            )
            facts |= {"usage": answer.body["usage"], "model_version": answer.model_version}
        if options.no_picture:
            return
        with _answering(measurements, "draw a picture", server.process.pid) as facts:
            body: dict[str, Any] = {"prompt": PROMPT, "seed": 0}
            if options.no_guidance:
                body["image"] = {"guidance_mode": "none"}
            response = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=HOURS)
            facts["picture_bytes"] = len(response.raise_for_status().json()["data"][0]["b64_json"]) * 3 // 4
    finally:
        server.__exit__()


@contextmanager
def _answering(measurements: Measurements, name: str, pid: int) -> Iterator[dict[str, Any]]:
    before = cpu_seconds(pid)
    with measurements.step(name, lambda: pid) as facts:
        yield facts
        facts["cpu_seconds"] = round(cpu_seconds(pid) - before, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Rehearse, step by step."""
    options = read_arguments(arguments)
    if unknown := set(options.only.split(",")) - set(ALL_STEPS):
        raise SystemExit(f"no such step: {', '.join(sorted(unknown))}")
    rehearsal = Rehearsal(options.folder.resolve(), options.layers)
    rehearsal.folder.mkdir(parents=True, exist_ok=True)
    measurements = Measurements(rehearsal.folder)
    for name in options.only.split(","):
        if name == SERVE:
            serve(rehearsal, options, measurements)
        else:
            run_step(name, rehearsal, measurements)
    if not options.keep:
        for path in rehearsal.folder.iterdir():
            if path != measurements.path:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
