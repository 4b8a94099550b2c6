"""A training process whose second rank computes slowly; the first leaves what its node tells Prometheus."""

import os
import sys
import time
import urllib.request
from pathlib import Path

from training.launching.stage_process import main
from training.stages.stage_loss import StageLoss

DELAY = 0.3


def read_node(port: str, path: Path) -> None:
    """Keep what is exported, for the process ends."""
    path.write_bytes(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read())


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        forward = StageLoss.forward

        def slow_forward(self, batch):
            time.sleep(DELAY)
            return forward(self, batch)

        StageLoss.forward = slow_forward
    code = main()
    if os.environ["RANK"] == "0":
        read_node(os.environ["VARGPT_METRICS_PORT"], Path("metrics.txt"))
    sys.exit(code)
