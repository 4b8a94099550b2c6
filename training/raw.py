"""The raw data: 1,797 real 8 x 8 scans of handwritten digits as files, restored offline, checked by hash.

Source: the UCI optical digits that scikit-learn ships. The files are PGM, so their bytes depend on no
encoder.
"""

from pathlib import Path

import numpy as np

from training.lineage import data_md5, md5_on_disk
from training.scenes import MAX_INK

HEADER = b"P5\n8 8\n16\n"
NUM_PIXELS = 64


def restore(data_dir: Path, dvc_file: Path) -> int:
    """Write the scans unless they are there, and verify them against data.dvc; the number of files written.

    Raises ValueError when what lies in `data_dir` afterwards is not what data.dvc names.
    """
    wanted = data_md5(dvc_file)
    written = 0
    for name, content in _files().items():
        path = data_dir / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            written += 1
    _refuse_strangers(data_dir)
    if (found := md5_on_disk(data_dir)) != wanted:
        raise ValueError(f"{data_dir} has hash {found}, but {dvc_file} names {wanted}")
    return written


def _files() -> dict[str, bytes]:
    """Every raw file by relative name: digits/LABEL/INDEX.pgm."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = digits.images.astype(np.uint8)
    return {
        f"digits/{label}/{index:04d}.pgm": HEADER + scan.tobytes()
        for index, (scan, label) in enumerate(zip(scans, digits.target, strict=True))
    }


def _refuse_strangers(data_dir: Path) -> None:
    names = _files().keys()
    for path in sorted(data_dir.rglob("*")):
        if path.is_file() and path.relative_to(data_dir).as_posix() not in names:
            raise ValueError(f"{path} is not part of the raw data; move it away")


def load_scans(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """All scans, (1797, 8, 8) with ink 0 to 16, and their labels. ValueError names a missing or broken
    file.
    """
    paths = sorted((data_dir / "digits").glob("*/*.pgm"), key=lambda path: path.name)
    if not paths:
        raise ValueError(f"no scans in {data_dir / 'digits'}; restore them with: vargpt data restore")
    scans = np.stack([_read_scan(path) for path in paths])
    return scans, np.array([int(path.parent.name) for path in paths])


def _read_scan(path: Path) -> np.ndarray:
    content = path.read_bytes()
    if not content.startswith(HEADER) or len(content) != len(HEADER) + NUM_PIXELS:
        raise ValueError(f"{path} is not an 8 x 8 scan")
    scan = np.frombuffer(content, np.uint8, offset=len(HEADER)).reshape(8, 8)
    if scan.max() > MAX_INK:
        raise ValueError(f"{path} has ink above {MAX_INK}")
    return scan
