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
# Of a folder, only the file that tells of its content is small.
SUMMARY = "summary.json"
# Exit code when a file is not there.
MISSING = 2


def pack(paths: Iterable[str]) -> Iterable[str]:
    """Lines of base64 of a compressed archive of these files; of a folder, its summary."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as files:
        for path in paths:
            files.add(f"{path}/{SUMMARY}" if Path(path).is_dir() else path)
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
        sys.exit(MISSING)
