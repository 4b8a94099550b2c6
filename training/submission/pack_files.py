"""Prints files as one archive in base64, for a reader of the log: `python -m training.submission.pack_files`.

It imports nothing but the standard library, so that the pod that runs it is done at once.
"""

import base64
import io
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

LINE_BYTES = 3 * 1024
# Of a folder that has it, only this file is small; it tells of the others.
SUMMARY = "summary.json"
# What a log holds: a node cuts it at 10 MiB.
MOST_BYTES = 6 << 20
# Exit code when a file is not there, or too large.
REFUSED = 2


def small_files(path: Path) -> list[Path]:
    """A file; of a folder its summary, or all its files where it has none. ValueError when they are large."""
    if not path.is_dir():
        return [path]
    if (path / SUMMARY).is_file():
        return [path / SUMMARY]
    found = sorted(file for file in path.rglob("*") if file.is_file())
    if sum(file.stat().st_size for file in found) > MOST_BYTES:
        raise ValueError(f"{path} has no {SUMMARY} and is larger than {MOST_BYTES >> 20} MiB")
    return found


def pack(paths: Iterable[str]) -> Iterable[str]:
    """Lines of base64 of a compressed archive of these files, and of the small files of folders."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as files:
        for path in paths:
            for file in small_files(Path(path)):
                files.add(file)
    data = archive.getvalue()
    for start in range(0, len(data), LINE_BYTES):
        yield base64.b64encode(data[start : start + LINE_BYTES]).decode("ascii")


def unpack(lines: Iterable[str], folder: Path) -> list[str]:
    """Write the files of an archive below a folder; their names."""
    data = b"".join(base64.b64decode(line) for line in lines)
    with tarfile.open(fileobj=io.BytesIO(data)) as files:
        files.extractall(folder, filter="data")
        return files.getnames()


if __name__ == "__main__":
    try:
        sys.stdout.writelines(f"{line}\n" for line in pack(sys.argv[1:]))
    except FileNotFoundError as error:
        sys.stderr.write(f"error: there is no {error.filename} on the volume\n")
        sys.exit(REFUSED)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(REFUSED)
