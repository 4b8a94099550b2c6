"""Laws of the commands about a model's files."""

from pathlib import Path

import pytest

from model.errors import UserError
from training.commands.models import evaluate

ROOT = Path(__file__).parents[3]


def test_a_size_with_one_held_out_split_is_not_evaluated_on_another(tmp_path):
    with pytest.raises(UserError, match="size 7b has one held-out split, test, got --split validation"):
        evaluate(str(tmp_path), params=ROOT / "params.yaml", size="7b", split="validation")
