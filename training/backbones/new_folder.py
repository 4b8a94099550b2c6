"""A folder that appears whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import UserError
from training.checkpoints import step_folders


@contextmanager
def new_folder(out: Path, nbytes: int, is_replaced: bool = False) -> Iterator[Path]:
    """A hidden folder beside `out`, which becomes `out` when the block ends well; what a kill left is
    removed.

    Args:
        nbytes: UserError when the disk has less room; also when another process is at it.
        is_replaced: What lies at `out` goes when the new folder is whole.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.new")
    beside.mkdir(exist_ok=True)
    with _locked(beside, f"another process writes {out} at this moment"):
        try:
            for left in beside.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            if (free := shutil.disk_usage(out.parent).free) < nbytes:
                raise UserError(f"{out.parent} has {free:,} bytes left, the weights take {nbytes:,}")
            yield beside
            for path in (*beside.rglob("*"), beside):
                step_folders.flush(path)
            old = out.with_name(f".{out.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if is_replaced and out.exists():
                os.rename(out, old)
            os.rename(beside, out)
            step_folders.flush(out.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def _locked(folder: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of a folder, which the kernel takes back when the process dies."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(refusal) from None
    finally:
        os.close(descriptor)
