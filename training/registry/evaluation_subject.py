"""What the figures of an evaluation are of: which weights, on which data; and whether two can be compared."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import UserError

SUBJECT = "subject"
# Only its figures decide; the other split is for tuning.
DECIDING_SPLIT = "test"


@dataclass(frozen=True, kw_only=True)
class EvaluationSubject:
    """The section `subject` of metrics/evaluate.json.

    Args:
        weights_sha256: The hash of the model's manifest.
        data_md5: DVC's hash of the raw data, from which the judge learned and scans were rendered.
        prepared_sha256: The hash of the questions and drawing requests, pictures included.
        split: test or validation.
        questions, drawings: How many were put to the model.
    """

    weights_sha256: str
    data_md5: str
    prepared_sha256: str
    split: str
    questions: int
    drawings: int

    @property
    def test_set(self) -> tuple[object, ...]:
        """All that two models must have in common for their figures to be compared."""
        return self.data_md5, self.prepared_sha256, self.split, self.questions, self.drawings


def subject_of(metrics: Mapping[str, Any]) -> EvaluationSubject:
    """What figures are of. UserError when they do not say so."""
    try:
        return EvaluationSubject(**metrics[SUBJECT])
    except (KeyError, TypeError):
        names = ", ".join(field.name for field in dataclasses.fields(EvaluationSubject))
        raise UserError(
            f"the figures do not say what they are of ({names}): evaluate the model again"
        ) from None


def check_subject(metrics: Mapping[str, Any], weights_sha256: str, data_md5: str | None) -> None:
    """UserError unless figures are of these weights, on the test split of the data that they learned from."""
    subject = subject_of(metrics)
    if subject.weights_sha256 != weights_sha256:
        raise UserError(
            f"the figures are of weights {subject.weights_sha256}, the model has {weights_sha256}: "
            "evaluate the model again"
        )
    if subject.split != DECIDING_SPLIT:
        raise UserError(
            f"the figures are of the split {subject.split}, only {DECIDING_SPLIT} decides: evaluate on it"
        )
    if subject.data_md5 != data_md5:
        raise UserError(
            f"the figures were measured on data {subject.data_md5}, the model learned from {data_md5}: "
            "get that data (dvc checkout) and evaluate the model again"
        )
