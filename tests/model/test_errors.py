"""Laws of error messages: what an address needs to be found stays, what it needs to be entered does not."""

import pytest

from model.errors import redact


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
