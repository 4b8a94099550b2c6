"""`python -m training.cluster`: writes the rendered manifests below k8s/, or names those that differ."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from model.errors import UserError
from training.cluster.manifest_files import changed_files, write_files

logger = logging.getLogger("training.cluster")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the manifests; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m training.cluster", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if something would change"
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the repository")
    options = parser.parse_args(arguments)
    try:
        paths = list(changed_files(options.root)) if options.check else write_files(options.root)
    except UserError as error:
        logger.error("error: %s", error)
        return 2
    for path in paths:
        logger.info("%s %s", "out of date:" if options.check else "wrote", path)
    return 1 if options.check and paths else 0


if __name__ == "__main__":
    sys.exit(main())
