"""Laws of promotions at once and of those that die: what is left is what one after the other leaves."""

import dataclasses
import itertools
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from model.errors import UserError
from tests.training.registry.candidates import FLOORS, MARGINS, candidate, changed
from training.registry import promotion_lock
from training.registry.promotion import promote, roll_back

WRITES = (
    "set_registered_model_tag",
    "delete_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "delete_model_version_tag",
    "log_dict",
)
CALLS = (*WRITES, "get_registered_model", "get_model_version")
DEATH = 77


@pytest.fixture(scope="module")
def store(tmp_path_factory, _empty_mlflow_database):
    """Version 1 is champion; 2 is better; 3 is as good as 1, but not as 2; 4 is bad."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{shutil.copy(_empty_mlflow_database, folder / 'mlflow.db')}"
    for number, digit in enumerate((0.98, 1.0, 0.975, 0.1), start=1):
        candidate(uri, folder, f"{number}", changed("vqa.digit", digit))
    promote(uri, "vargpt", "1", MARGINS, FLOORS, "ada")
    return folder


@pytest.fixture
def registries(store, tmp_path):
    """New copies of that store, each by its address."""

    def copies():
        for number in itertools.count():
            yield f"sqlite:///{shutil.copy(store / 'mlflow.db', tmp_path / f'mlflow-{number}.db')}"

    return copies()


def crown(uri, version, by="ada"):
    return promote(uri, "vargpt", version, MARGINS, FLOORS, by, record_of(uri))


def record_of(uri):
    return Path(uri.removeprefix("sqlite:///")).with_suffix(".jsonl")


def interrupt(monkeypatch, at, action, names=CALLS):
    """Do something just before a client's call number `at`; the calls are counted in the list returned."""
    calls = []

    def wrapped(name, original):
        def call(self, *arguments, **options):
            calls.append(name)
            if len(calls) == at + 1:
                action()
            return original(self, *arguments, **options)

        return call

    for name in names:
        monkeypatch.setattr(MlflowClient, name, wrapped(name, getattr(MlflowClient, name)))
    return calls


def history_of(uri):
    """Versions that became champion, in their order, after checking that registry and record agree on it."""
    model = MlflowClient(uri, uri).get_registered_model("vargpt")
    champions = model.tags["vargpt.champions"].split(",")
    assert str(model.aliases["champion"]) == champions[-1]
    assert not [name for name in model.tags if name.startswith(promotion_lock.INTENT_PREFIX)]
    lines = record_of(uri).read_text().splitlines() if record_of(uri).is_file() else []
    moves = [
        (entry["from"], entry["version"]) for entry in map(json.loads, lines) if entry["event"] == "promoted"
    ]
    assert moves == list(itertools.pairwise(champions))
    for before, after in moves:
        tags = MlflowClient(uri, uri).get_model_version("vargpt", after).tags
        assert tags["promoted_from"] == before and tags["promoted_by"] and tags["promoted_at"]
    return champions


def test_a_promotion_that_comes_between_leaves_what_one_after_the_other_leaves(registries, monkeypatch):
    monkeypatch.setattr(promotion_lock, "WAIT_SECONDS", 0.0)
    seen = set()
    for at in itertools.count():
        uri = next(registries)
        with monkeypatch.context() as patch:

            def come_between(uri=uri):
                patch.undo()
                try:
                    crown(uri, "2", "bob")
                except UserError as error:
                    assert "under way: try again" in str(error)

            calls = interrupt(patch, at, come_between)
            crown(uri, "3")
        seen.add(tuple(history_of(uri)))
        if len(calls) <= at:
            break

    # 3 after 2 would be a champion that the gates never let in.
    assert seen == {("1", "2"), ("1", "3")}
    assert at > 10


def test_of_two_at_the_same_time_the_gates_are_asked_one_after_the_other(registries):
    uri, start = next(registries), threading.Barrier(2)
    refused = []

    def go(version):
        start.wait()
        try:
            crown(uri, version)
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=go, args=(version,)) for version in ("2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert history_of(uri) in (["1", "2"], ["1", "3"], ["1", "3", "2"])
    assert all("under way" in reason for reason in refused)


def die():
    os._exit(DEATH)


def run_and_die(uri, at, work):
    """Whether a process that works in the registry, to die before its write number `at`, came so far."""
    child = os.fork()
    if not child:
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, at, die, WRITES)
            work(uri)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == DEATH


def test_a_promotion_that_dies_at_any_point_is_completed_or_undone_by_the_next_call(registries):
    seen = []
    for at in itertools.count():
        uri = next(registries)
        has_died = run_and_die(uri, at, lambda uri: crown(uri, "2", "bob"))
        assert not crown(uri, "4").is_champion
        seen.append(history_of(uri))
        if not has_died:
            break

    undone, completed = ["1"], ["1", "2"]
    assert seen == sorted(seen) and undone in seen and completed in seen
    assert len(seen) > 8


def test_a_rollback_that_dies_at_any_point_is_completed_or_undone_by_the_next_call(registries):
    seen = []
    for at in itertools.count():
        uri = next(registries)
        crown(uri, "2")
        has_died = run_and_die(uri, at, lambda uri: roll_back(uri, "vargpt", "bob", record_of(uri)))
        crown(uri, "4")
        model = MlflowClient(uri, uri).get_registered_model("vargpt")
        lines = [json.loads(line)["event"] for line in record_of(uri).read_text().splitlines()]
        seen.append((model.tags["vargpt.champions"], str(model.aliases["champion"]), "rolled back" in lines))
        if not has_died:
            break

    undone, completed = ("1,2", "2", False), ("1", "1", True)
    assert set(seen) == {undone, completed}
    assert seen == [undone] * seen.count(undone) + [completed] * seen.count(completed)


def test_what_fails_is_settled_by_the_very_call_that_fails(registries, monkeypatch):
    def fail():
        raise KeyboardInterrupt

    for at in range(4, 16):
        uri = next(registries)
        with monkeypatch.context() as patch:
            calls = interrupt(patch, at, fail)
            with pytest.raises(KeyboardInterrupt):
                crown(uri, "2")
        if "set_registered_model_alias" not in calls[:at]:
            assert history_of(uri) == ["1"]


def foreign(age_seconds):
    """An intent of a process on another machine."""
    from datetime import UTC, datetime, timedelta

    time = (datetime.now(UTC) - timedelta(seconds=age_seconds)).isoformat(timespec="milliseconds")
    return dataclasses.replace(promotion_lock.new_intent("eve"), machine="elsewhere", time=time)


def announced(uri, intent):
    client = MlflowClient(uri, uri)
    client.set_registered_model_tag("vargpt", intent.tag, json.dumps(dataclasses.asdict(intent)))


def test_a_promotion_on_another_machine_is_waited_for_until_its_time_is_over(registries):
    uri = next(registries)
    announced(uri, foreign(promotion_lock.LEASE_SECONDS - 60))
    with pytest.raises(
        UserError, match=r"a promotion of vargpt that eve began at .* is under way: try again"
    ):
        crown(uri, "2")

    other = next(registries)
    announced(other, foreign(promotion_lock.LEASE_SECONDS + 60))
    assert crown(other, "2").is_champion
    assert history_of(other) == ["1", "2"]


def test_a_promotion_that_was_held_for_dead_does_not_move_the_alias(registries, monkeypatch):
    uri = next(registries)
    client = MlflowClient(uri, uri)

    def take_over():
        tags = client.get_registered_model("vargpt").tags
        for name in tags:
            if name.startswith(promotion_lock.INTENT_PREFIX):
                client.delete_registered_model_tag("vargpt", name)

    with monkeypatch.context() as patch:
        decide = promotion_lock.record_decision
        patch.setattr(
            "training.registry.promotion.record_decision",
            lambda *arguments: (take_over(), decide(*arguments)),
        )
        with pytest.raises(UserError, match="another one went on"):
            crown(uri, "2")

    assert history_of(uri) == ["1"]
