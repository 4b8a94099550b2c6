"""Law of flight records: where a collective hangs, torch finds the folder that it writes them to."""

import pytest

# Leaves its record as torch does, which makes no folder for it.
CHILD = """
import os
from pathlib import Path

Path(os.environ["TORCH_FR_DUMP_TEMP_FILE"] + os.environ.get("RANK", "0")).touch()
"""


@pytest.mark.parametrize("number", [1, 2])
def test_flight_records_have_a_folder_before_processes_start(start, tmp_path, number):
    (tmp_path / "recording_child.py").write_text(CHILD)
    prefix = tmp_path / "flight-recorder" / "pod_"

    process = start(
        *("--module", "recording_child", "stage1", "--nproc", str(number)),
        TORCH_FR_DUMP_TEMP_FILE=str(prefix),
    )

    assert process.wait(timeout=60) == 0
    assert {path.name for path in prefix.parent.iterdir()} == {f"pod_{rank}" for rank in range(number)}
