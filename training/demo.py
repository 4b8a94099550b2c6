"""The whole platform once, as a user would type it, with its figures, time and memory in one summary."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from training.lineage import git_facts

VARGPT = (sys.executable, "-m", "training.cli")
DVC = (sys.executable, "-m", "dvc")
STAGES = ("backbones", "stage1", "stage2", "stage3")
SAMPLE_SECONDS = 0.5
FIGURES = {
    "draw": ("all_right", "unseen", "frechet_ratio"),
    "vqa": ("digit", "color", "background"),
    "pope": ("random", "popular", "adversarial"),
    "tokenizer": ("psnr", "judge"),
}


class MemoryWatch(threading.Thread):
    """The most memory that this process and all below it held at one time, in bytes."""

    def __init__(self) -> None:
        super().__init__(name="memory", daemon=True)
        self.peak_bytes, self._done = 0, threading.Event()

    def run(self) -> None:
        """Look every so often, until stopped."""
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, _tree_bytes())

    def stop(self) -> int:
        """The peak."""
        self._done.set()
        self.join()
        return self.peak_bytes


def _tree_bytes() -> int:
    """Memory of the tree without what its processes share: the sum of proportional set sizes."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


class Demo:
    """One play of the pipeline in the working directory.

    Args:
        out: Folder of reply.png and summary.json.
    """

    def __init__(self, params: Path, out: Path, prompt: str, tracking_uri: str) -> None:
        self.params, self.out, self.prompt, self.tracking_uri = params, out, prompt, tracking_uri
        self.reply: dict[str, Any] = {}

    def play(self) -> dict[str, Any]:
        """Run every step that is not done yet and write the summary. ValueError names a step that failed."""
        began, watch = time.monotonic(), MemoryWatch()
        watch.start()
        self._run("data", *VARGPT, "data", "restore")
        self._run("pipeline", *DVC, "repro")
        uri = ("--tracking-uri", self.tracking_uri)
        promotion = self._json("promote", *VARGPT, "promote", "--json", *uri)
        bento = self._json("package", *VARGPT, "package", "--json", *uri)
        self.out.mkdir(parents=True, exist_ok=True)
        asking = ("ask", self.prompt, "--seed", "7", "--out", str(self.out / "reply.png"), "--json")
        self.reply = self._json("ask", *VARGPT, *asking, "--target", bento["bento_tag"])
        peak, total = watch.stop(), time.monotonic() - began
        return self._summary(promotion["has_changed"], total, peak)

    def closing_words(self) -> list[str]:
        """The reply, and where to look next."""
        return [
            "",
            f"asked:    {self.prompt}",
            f"answered: {self.reply['text']}",
            *(f"picture:  {path}" for path in self.reply["images"]),
            f"compare:  mlflow server --backend-store-uri {self.tracking_uri}",
        ]

    def _run(self, name: str, *command: str) -> None:
        if (code := subprocess.run(command, check=False).returncode) != 0:
            raise ValueError(f"the demo stopped at {name}, which ended with exit code {code}")

    def _json(self, name: str, *command: str) -> dict[str, Any]:
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.stderr.write(done.stdout)
            raise ValueError(f"the demo stopped at {name}, which ended with exit code {done.returncode}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def _summary(self, has_changed: bool, total: float, peak_bytes: int) -> dict[str, Any]:
        """Figures of the model; time and memory are those of the play that made it."""
        metrics = json.loads(Path("metrics/evaluate.json").read_text())
        path = self.out / "summary.json"
        if path.is_file() and not has_changed:
            return {**json.loads(path.read_text()), "metrics": metrics}
        pointers = [json.loads(Path(f"artifacts/{stage}.json").read_text()) for stage in STAGES]
        summary: dict[str, Any] = {
            group: {name: metrics[group][name] for name in names} for group, names in FIGURES.items()
        }
        summary["draw_and_describe"] = metrics["draw_and_describe"]
        seconds = {pointer["stage"]: pointer["seconds"] for pointer in pointers}
        summary["seconds"] = {"train": sum(seconds.values()), "total": round(total, 1), **seconds}
        summary |= {"peak_rss_bytes": peak_bytes, "commit": git_facts(Path())[0]}
        path.write_text(json.dumps(summary, indent=1) + "\n")
        return {**summary, "metrics": metrics}
