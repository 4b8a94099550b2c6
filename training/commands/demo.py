"""The whole platform once, as a user would type it, with its figures, time and memory in one summary."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from model.errors import UserError, redact
from training.commands.options import CHECK_FAILED, MODEL_NAME
from training.registry.git_history import git_facts
from training.registry.versions import CHALLENGER, CHAMPION

logger = logging.getLogger(__name__)

VARGPT = (sys.executable, "-m", "training.commands")
DVC = (sys.executable, "-m", "dvc")
STEPS = {
    "data": "fetch the raw data (dvc pull)",
    "pipeline": "prepare, train backbones and three stages, evaluate: what has changed of it (dvc repro)",
    "promote": "register the model and make it champion (vargpt promote)",
    "package": "build its service (vargpt package)",
    "ask": "start the service and ask it (vargpt ask)",
}
STAGES = ("backbones", "stage1", "stage2", "stage3")
METRICS = Path("metrics/evaluate.json")
SAMPLE_SECONDS = 0.5
# What is resident grows by this share before shared memory is told apart again.
GROWTH = 1.01
FIGURES = {
    "draw": ("all_right", "unseen", "frechet_ratio"),
    "vqa": ("digit", "color", "background"),
    "pope": ("random", "popular", "adversarial"),
    "tokenizer": ("psnr", "judge"),
}


class MemoryWatch(threading.Thread):
    """The most memory that this process and all below it held at one time, in bytes.

    To tell shared memory apart, the kernel walks all pages of a process, which meanwhile can get no new ones:
    twice a second that took 7 % of a core, and more from what was training. So it is asked only when more is
    resident, with what is shared counted twice, than ever before.
    """

    def __init__(self) -> None:
        super().__init__(name="memory", daemon=True)
        self.peak_bytes, self._resident, self._done = 0, 0, threading.Event()

    def run(self) -> None:
        """Look every so often, until stopped."""
        while not self._done.wait(SAMPLE_SECONDS):
            self.look()

    def look(self) -> None:
        """Take in what is held now."""
        tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
        if (resident := _sum(tree, _resident_bytes)) > GROWTH * self._resident:
            self._resident = resident
            self.peak_bytes = max(self.peak_bytes, _sum(tree, _own_bytes))

    def stop(self) -> int:
        """The peak."""
        self._done.set()
        self.join()
        return self.peak_bytes


def _resident_bytes(process: psutil.Process) -> int:
    return process.memory_info().rss


def _own_bytes(process: psutil.Process) -> int:
    """Without what others share: the proportional set size."""
    return process.memory_full_info().pss


def _sum(tree: Iterable[psutil.Process], measure: Callable[[psutil.Process], int]) -> int:
    """Of all processes that are still there."""
    total = 0
    for process in tree:
        with contextlib.suppress(psutil.Error):
            total += measure(process)
    return total


@dataclass(frozen=True)
class Cost:
    """What one run through everything took: seconds, and bytes of memory at the peak."""

    seconds: float
    peak_bytes: int
    commit: str | None


class Demo:
    """One run of the whole pipeline in the working directory.

    Args:
        out: Folder of reply.png and summary.json.
    """

    def __init__(self, out: Path, prompt: str, tracking_uri: str) -> None:
        self.out, self.prompt, self.tracking_uri = out, prompt, tracking_uri
        self.reply: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.alias = CHAMPION
        self._steps_begun = 0

    def run(self) -> dict[str, Any]:
        """Run every step that is not done yet and write the summary. UserError names a step that failed."""
        began, watch = time.monotonic(), MemoryWatch()
        watch.start()
        self._run("data", *DVC, "pull", "data.dvc")
        self._run("pipeline", *DVC, "repro")
        # Seeds and processors differ: what misses a floor is shown all the same, as what it is.
        outcome = self._json("promote", *VARGPT, "promote", "--json", accepted=(CHECK_FAILED,))
        logger.info("%s", outcome["report"])
        self.alias = CHAMPION if outcome["is_champion"] else CHALLENGER
        model = f"models:/{MODEL_NAME}@{self.alias}"
        bento = self._json("package", *VARGPT, "package", "--json", "--model-uri", model)
        self.out.mkdir(parents=True, exist_ok=True)
        picture = self.out / "reply.png"
        picture.unlink(missing_ok=True)
        asking = ("ask", self.prompt, "--seed", "7", "--out", str(picture), "--json")
        self.reply = self._json("ask", *VARGPT, *asking, "--target", bento["bento_tag"])
        cost = Cost(round(time.monotonic() - began, 1), watch.stop(), git_facts(Path())[0])
        self.metrics = json.loads(METRICS.read_text())
        path = self.out / "summary.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
        summary = summarize(self.metrics, _pointers(), cost, before)
        path.write_text(json.dumps(summary, indent=1) + "\n")
        return summary

    def closing_words(self) -> list[str]:
        """The reply, and where to look next."""
        why = "" if self.alias == CHAMPION else ", since a gate is closed (step 3 says which)"
        return [
            "",
            f"model:    the {self.alias}{why}",
            f"asked:    {self.prompt}",
            f"answered: {self.reply['text']}",
            *(f"picture:  {path}" for path in self.reply["images"] or ["none was drawn"]),
            f"summary:  {self.out / 'summary.json'}",
            f"compare:  {self._where_runs_are()}",
        ]

    def _where_runs_are(self) -> str:
        """The page of a server, or the command that shows the runs of a database."""
        address = redact(self.tracking_uri)
        return address if address.startswith("http") else f"mlflow server --backend-store-uri {address}"

    def _environment(self) -> dict[str, str]:
        """Where MLflow is goes to every step this way: lists of processes show what an option says."""
        return {**os.environ, "MLFLOW_TRACKING_URI": self.tracking_uri}

    def _announce(self, step: str) -> None:
        self._steps_begun += 1
        logger.info("step %d of %d: %s", self._steps_begun, len(STEPS), STEPS[step])

    def _run(self, step: str, *command: str) -> None:
        self._announce(step)
        if code := subprocess.run(command, check=False, env=self._environment()).returncode:
            raise UserError(f"the demo stopped at {step}, which ended with exit code {code}")

    def _json(self, step: str, *command: str, accepted: Sequence[int] = ()) -> dict[str, Any]:
        """What a step says. An accepted exit code says something, too, unlike a fault that ends with it."""
        self._announce(step)
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, text=True, env=self._environment()
        )
        if done.returncode and not (done.returncode in accepted and done.stdout.strip()):
            raise UserError(f"the demo stopped at {step}, which ended with exit code {done.returncode}")
        return json.loads(done.stdout.strip().splitlines()[-1])


def _pointers() -> list[dict[str, Any]]:
    return [json.loads(Path(f"artifacts/{stage}.json").read_text()) for stage in STAGES]


def summarize(
    metrics: Mapping[str, Any], pointers: Sequence[Mapping[str, Any]], cost: Cost, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Figures of the model, with time, memory and commit of the run that made it.

    Args:
        pointers: What artifacts/ says of the stages, in their order.
        before: The summary of an earlier run, whose time and memory count if it made this very model.
    """
    weights = pointers[-1]["weights_sha256"]
    seconds = {pointer["stage"]: pointer["seconds"] for pointer in pointers}
    took = {
        "seconds": {"train": round(sum(seconds.values()), 1), "total": cost.seconds, **seconds},
        "peak_rss_bytes": cost.peak_bytes,
        "commit": cost.commit,
        "weights_sha256": weights,
    }
    if before.get("weights_sha256") == weights:
        took = {name: before[name] for name in took}
    figures = {group: {name: metrics[group][name] for name in names} for group, names in FIGURES.items()}
    return {**figures, "draw_and_describe": metrics["draw_and_describe"], **took}
