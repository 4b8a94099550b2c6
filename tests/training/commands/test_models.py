"""Laws of the commands about a model's files."""

from pathlib import Path

import pytest

from model.errors import UserError
from training.commands.models import evaluate

ROOT = Path(__file__).parents[3]


def test_a_size_without_held_out_digits_is_not_evaluated(tmp_path):
    with pytest.raises(UserError, match="no questions and drawing requests for size 7b"):
        evaluate(str(tmp_path), params=ROOT / "params.yaml", size="7b")
