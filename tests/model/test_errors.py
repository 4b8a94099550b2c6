"""Laws of error messages: what an address needs to be found stays, what it needs to be entered does not."""

import pytest

from model.errors import UserError, is_outage, redact, tracking_failure


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ada:secret@mlflow:5000/api", "http://mlflow:5000/api"),
        ("http://secret@mlflow:5000", "http://mlflow:5000"),
        (
            "postgresql+psycopg2://ada:se@cr/et@db:5432/mlflow?sslmode=require",
            "postgresql+psycopg2://db:5432/mlflow?sslmode=require",
        ),
        (
            "postgresql://db/mlflow?user=ada&password=secret&sslmode=require",
            "postgresql://db/mlflow?user=ada&password=***&sslmode=require",
        ),
        (
            "(refused: 'http://ada:secret@a/b' and http://bob:secret@c)",
            "(refused: 'http://a/b' and http://c)",
        ),
        ("sqlite:////home/ada@work/mlflow.db", "sqlite:////home/ada@work/mlflow.db"),
        ("models:/vargpt@champion at http://mlflow:5000", "models:/vargpt@champion at http://mlflow:5000"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(text, shown):
    assert redact(text) == shown
    assert redact(ValueError(text)) == shown


def test_a_page_of_html_is_cut_to_a_line_for_a_log():
    assert len(redact("x" * 10_000)) == 300


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (OSError(5, "Input/output error"), True),
        (OSError(116, "Stale file handle"), True),
        (OSError(24, "Too many open files"), True),
        (OSError("No such device (os error 19)"), True),
        (RuntimeError("Error while deserializing header: I/O error: broken (os error 5)"), True),
        (FileNotFoundError(2, "No such file or directory"), False),
        (IsADirectoryError(21, "Is a directory"), False),
        (PermissionError(13, "Permission denied"), False),
        (FileNotFoundError("No such file or directory: weights"), False),
        (OSError("Error no file named model.safetensors found"), False),
        (RuntimeError("Error while deserializing header: header too small"), False),
    ],
)
def test_what_the_system_failed_at_may_pass_and_what_is_wrong_with_a_file_stays(error, may_pass):
    assert is_outage(error) == may_pass


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (None, ConnectionError),
        ("INTERNAL_ERROR", ConnectionError),
        ("TEMPORARILY_UNAVAILABLE", ConnectionError),
        ("RESOURCE_DOES_NOT_EXIST", UserError),
        ("PERMISSION_DENIED", UserError),
    ],
)
def test_only_what_mlflow_has_answered_is_not_worth_another_try(code, kind):
    error = OSError("gone")
    if code:
        error.error_code = code

    assert type(tracking_failure(error, "said")) is kind
