"""Reads the raw data: 1,797 scans of handwritten digits, 8 x 8, in the parquet file that data.dvc tracks.

Columns: `label`, 0 to 9, and `scan`, 64 bytes of ink from 0 to 16, row by row. Source: the UCI optical digits
in the order in which scikit-learn ships them.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import UserError, is_outage
from training.digits.scenes import MAX_INK

FILE = "digits.parquet"
SIDE = 8


def load_scans(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """All scans, (N, 8, 8) with ink from 0 to 16, and their labels, (N,).

    Raises:
        UserError: the file is missing, damaged, or has another layout.
        OSError: a disk failed.
    """
    path = data_dir / FILE
    if not path.is_file():
        raise UserError(f"there are no scans at {path}; fetch them with: dvc pull")
    try:
        table = pq.read_table(path, columns=["label", "scan"])
        labels = table["label"].to_numpy().astype(np.int64)
        scans = np.stack(table["scan"].to_numpy(zero_copy_only=False)).reshape(-1, SIDE, SIDE)
    except (pa.ArrowException, OSError, ValueError) as error:
        if is_outage(error):
            raise
        raise UserError(f"{path} is not a parquet file of scans: {error}") from None
    if not ((labels >= 0) & (labels <= 9)).all() or not ((scans >= 0) & (scans <= MAX_INK)).all():
        raise UserError(f"{path} must have labels from 0 to 9 and ink from 0 to {MAX_INK}")
    return scans, labels
