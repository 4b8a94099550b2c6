"""Laws of a canary: it is taken only where it is as good, by the metrics that the service exports."""

import dataclasses

import pytest

from model.errors import UserError
from tests.training.registry.candidates import FLOORS, MARGINS, METRICS
from training.deployment.canary_rules import CanaryRules, bar_of
from training.deployment.registered_versions import RegisteredVersion
from training.deployment.rollout import is_rolled_out
from training.deployment.service_metrics import ERRORS, Traffic, parse_traffic

RULES = CanaryRules(margins=MARGINS, floors=FLOORS, observe_seconds=1, min_requests=20)
GOOD = Traffic(requests=900, errors=3, replies=897, reply_seconds=897.0)


def canary(requests=100, errors=0, seconds=1.0):
    replies = requests - errors
    return Traffic(requests, errors, replies, replies * seconds)


def test_a_version_that_answers_as_well_is_taken():
    assert RULES.objection_to_traffic(GOOD, canary()) is None


@pytest.mark.parametrize(
    ("traffic", "objection"),
    [
        (canary(requests=19), "it had 19 requests, 20 are needed to tell"),
        (canary(errors=2), "2.0% of its requests failed, of the other's 0.3%"),
        (canary(seconds=1.7), "its replies take 1.70 s, the other's 1.00 s"),
    ],
)
def test_a_version_that_answers_worse_or_not_enough_is_not_and_says_why(traffic, objection):
    assert RULES.objection_to_traffic(GOOD, traffic) == objection


def test_where_both_are_bad_the_canary_is_not_blamed():
    assert RULES.objection_to_traffic(canary(errors=30), canary(errors=30)) is None


def registered(number, **subject):
    facts = {"weights_sha256": number, "data_md5": "d", "prepared_sha256": "p", "split": "test"}
    figures = {"subject": {**facts, "questions": 1, "drawings": 1, **subject}, **METRICS}
    return RegisteredVersion(number, "0" * 12, figures)


@pytest.mark.parametrize(
    ("stable", "is_bar"),
    [
        (registered("1"), True),
        (registered("1", prepared_sha256="q"), False),
        (dataclasses.replace(registered("1"), is_withdrawn=True), False),
        (RegisteredVersion("1", "0" * 12), False),
        (None, False),
    ],
)
def test_what_is_deployed_sets_a_bar_where_its_figures_count_and_are_of_the_same_test_set(stable, is_bar):
    assert bar_of(stable, registered("2")) is (stable if is_bar else None)


def test_a_version_without_figures_cannot_be_compared():
    with pytest.raises(UserError, match=r"^version 2 .* has no figures: evaluate it first"):
        RULES.objection_to_figures(None, RegisteredVersion("2", "0" * 12))


def test_the_service_and_its_reader_agree_on_the_names_of_metrics_and_outcomes():
    metrics = pytest.importorskip("serving.metrics").EngineMetrics()
    metrics.requests.labels(route="/v1/chat/completions", outcome="answered").inc(8)
    metrics.requests.labels(route="/v1/chat/completions", outcome="generation_failed").inc(2)
    metrics.requests.labels(route="/v1/chat/completions", outcome="unknown_field").inc(5)
    metrics.reply.observe(0.5)
    metrics.reply.observe(1.5)

    traffic = parse_traffic([metrics.render(), metrics.render()])

    assert traffic == Traffic(requests=20, errors=4, replies=4, reply_seconds=4.0)
    assert (traffic.error_share, traffic.latency) == (0.2, 1.0)


def test_every_outcome_that_counts_as_an_error_is_one_of_the_services():
    from pathlib import Path

    said = "".join(path.read_text() for path in Path(__file__).parents[3].joinpath("serving").glob("*.py"))

    assert not [code for code in ERRORS if f'"{code}"' not in said]


class Deployment:
    """As the client shows one."""

    def __init__(self, generation, observed, wanted, updated, available, total):
        self.metadata = type("M", (), {"generation": generation})
        self.spec = type("S", (), {"replicas": wanted})
        counts = {"updated_replicas": updated, "available_replicas": available, "replicas": total}
        self.status = type("T", (), {"observed_generation": observed, **counts})


@pytest.mark.parametrize(
    ("deployment", "is_done"),
    [
        (Deployment(2, 2, 2, 2, 2, 2), True),
        (Deployment(2, 1, 2, 2, 2, 2), False),
        (Deployment(2, 2, 2, 1, 2, 3), False),
        (Deployment(2, 2, 2, 2, 1, 2), False),
        (Deployment(2, 2, 2, 2, 2, 3), False),
    ],
)
def test_a_rollout_is_over_when_all_pods_are_new_and_answer_and_the_old_ones_are_gone(deployment, is_done):
    assert is_rolled_out(deployment) is is_done
