"""Moves the alias `champion` of MLflow's registry: to a version that passes the gates, or one back.

All champions are listed, in their order, in a tag of the registered model; every decision is written to a
file of JSON lines and to the run of the version that it is about.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from training.registry.evaluation_subject import subject_of
from training.registry.gates import Decision, decide
from training.registry.lineage import TAG_PREFIX
from training.registry.promotion_lock import (
    Intent,
    forget_intent,
    new_intent,
    promotion_lock,
    record_decision,
)
from training.registry.versions import CHALLENGER, CHAMPION, existing_version, figures_of, open_registry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPIONS_TAG = f"{TAG_PREFIX}champions"
PROMOTED, REFUSED, ROLLED_BACK = "promoted", "refused", "rolled back"
# Of a version that was withdrawn.
PAST_TAGS = ("rolled_back_at", "rolled_back_by")
# What the first of two lines of the record says, before anything has changed.
BEGUN = "begun: "


@dataclass(frozen=True)
class Promotion:
    """What became of a candidate, and why."""

    version: str
    champion_before: str | None
    is_champion: bool
    has_changed: bool
    decision: Decision | None
    obstacle: str | None = None

    @property
    def report(self) -> str:
        """A line for the outcome, then one for every gate that failed (or, promoted, for every gate)."""
        before = f"version {self.champion_before}" if self.champion_before else "nothing"
        if self.is_champion and not self.has_changed:
            return f"version {self.version} is the champion already"
        if self.is_champion:
            lines = [f"version {self.version} is the champion now, after {before}"]
        else:
            lines = [f"version {self.version} is the challenger; the champion stays {before}"]
        gates = () if self.decision is None else self.decision.gates
        lines += [f"  {gate}" for gate in gates if self.is_champion or not gate.is_open]
        return "\n".join(lines + ([f"  {self.obstacle}"] if self.obstacle else []))

    @property
    def objection(self) -> str | None:
        """Why the candidate is not the champion, in one line; None if it is."""
        if self.is_champion:
            return None
        gates = () if self.decision is None else self.decision.failed
        return "; ".join([*(str(gate) for gate in gates), *([self.obstacle] if self.obstacle else [])])


@dataclass(frozen=True)
class Rollback:
    """Which version is champion again, and which one was withdrawn."""

    version: str
    withdrawn: str


def promote(
    uri: str,
    model_name: str,
    version: str,
    margins: Mapping[str, Any],
    floors: Mapping[str, Any],
    by: str,
    record: Path | None = None,
) -> Promotion:
    """Make a version the champion if every gate is open, else the challenger; write down who, when and why.

    Args:
        margins: How much worse than the best champion so far each gated metric may be, nested like the
            metrics.
        floors: The least that each gated metric must reach in any case.
        by: Who promotes.
        record: A file of JSON lines to which the decision is appended.

    Raises:
        UserError: there is no such version, nobody is named, or another promotion is under way.
    """
    intent, client = new_intent(by), open_registry(uri)
    candidate = existing_version(client, model_name, version)
    if candidate is None:
        raise UserError(f"there is no version {version} of {model_name}")
    with promotion_lock(client, model_name, intent, functools.partial(_settle, client, model_name, record)):
        champions = _champions(client, model_name)
        before = str(champions[-1].version) if champions else None
        if _alias(client, model_name) == version:
            return Promotion(version, version, True, False, None)
        decision, obstacle = _judge(candidate, champions, margins, floors)
        is_yes = decision.is_yes and obstacle is None
        promotion = Promotion(version, before, is_yes, is_yes, decision, obstacle)
        entry = _entry(intent, model_name, version, before) | {
            "obstacle": obstacle,
            "gates": [dataclasses.asdict(gate) | {"short_by": gate.short_by} for gate in decision.gates],
        }
        if is_yes:
            others = [str(champion.version) for champion in champions]
            listed = (*others, version) if before != version else tuple(others)
            _make_champion(client, model_name, intent, listed, entry | {"event": PROMOTED}, record)
        else:
            client.set_registered_model_alias(model_name, CHALLENGER, version)
            _write_record(client, candidate.run_id, entry | {"event": REFUSED}, record)
    return promotion


def roll_back(uri: str, model_name: str, by: str, record: Path | None = None) -> Rollback:
    """Make the champion before the present one champion again; a repeated rollback goes further back.

    What was withdrawn sets no bar for later candidates.

    Raises:
        UserError: there is no champion before, nobody is named, or another promotion is under way.
    """
    intent, client = new_intent(by), open_registry(uri)
    _refuse_unknown(client, model_name)
    with promotion_lock(client, model_name, intent, functools.partial(_settle, client, model_name, record)):
        if _alias(client, model_name) is None:
            raise UserError(f"{model_name} has no champion")
        *former, withdrawn = _champions(client, model_name)
        if not former:
            raise UserError(f"{model_name} has no champion before version {withdrawn.version}")
        entry = _entry(intent, model_name, str(former[-1].version), str(withdrawn.version))
        listed = tuple(str(champion.version) for champion in former)
        _make_champion(client, model_name, intent, listed, entry | {"event": ROLLED_BACK}, record)
    return Rollback(listed[-1], str(withdrawn.version))


def _judge(
    candidate: "ModelVersion",
    champions: list["ModelVersion"],
    margins: Mapping[str, Any],
    floors: Mapping[str, Any],
) -> tuple[Decision, str | None]:
    """The gates against all champions measured on the candidate's test set, and any other obstacle."""
    figures = figures_of(candidate)
    if figures is None:
        raise UserError(f"version {candidate.version} of {candidate.name} has no figures: evaluate it first")
    test_set = subject_of(figures).test_set
    measured = [(champion, figures_of(champion)) for champion in champions]
    comparable = [(champion, known) for champion, known in measured if _is_of(known, test_set)]
    decision = decide(figures, [known for _, known in comparable], margins, floors)
    if not champions or (comparable and comparable[-1][0] is champions[-1]):
        return decision, None
    address = f"models:/{candidate.name}@{CHAMPION}"
    return decision, (
        f"version {champions[-1].version}, the champion, was measured on another test set; to compare them: "
        f"vargpt evaluate --model {address} --metrics metrics/champion.json --plots outputs/champion/plots, "
        "then vargpt promote --champion-metrics metrics/champion.json"
    )


def _is_of(figures: Mapping[str, Any] | None, test_set: tuple[object, ...]) -> bool:
    """Whether figures are of this test set; those that do not say so are not."""
    try:
        return figures is not None and subject_of(figures).test_set == test_set
    except UserError:
        return False


def _champions(client: "MlflowClient", model_name: str) -> list["ModelVersion"]:
    """All champions that still exist, the present one last; an alias that was moved by hand counts."""
    tags = client.get_registered_model(model_name).tags
    listed = [version for version in tags.get(CHAMPIONS_TAG, "").split(",") if version]
    present = _alias(client, model_name)
    if present is not None and listed[-1:] != [present]:
        listed.append(present)
    found = (existing_version(client, model_name, version) for version in listed)
    return [version for version in found if version is not None]


def _alias(client: "MlflowClient", model_name: str) -> str | None:
    """The version that is champion now; None for none."""
    version = client.get_registered_model(model_name).aliases.get(CHAMPION)
    return None if version is None else str(version)


def _refuse_unknown(client: "MlflowClient", model_name: str) -> None:
    if not client.search_registered_models(f"name = '{model_name}'"):
        raise UserError(f"there is no registered model {model_name}")


def _entry(intent: Intent, model_name: str, version: str, before: str | None) -> dict[str, Any]:
    facts = {"id": intent.id, "time": intent.time, "by": intent.by, "model": model_name}
    return facts | {"version": version, "from": before}


def _make_champion(
    client: "MlflowClient",
    model_name: str,
    intent: Intent,
    champions: tuple[str, ...],
    entry: dict[str, Any],
    record: Path | None,
) -> None:
    """Write down what is decided, then move the alias; `_settle` does all that follows from it."""
    version = champions[-1]
    decided = dataclasses.replace(intent, version=version, champions=champions, entry=entry)
    record_decision(client, model_name, decided)
    _append(record, entry | {"event": f"{BEGUN}{entry['event']}"})
    client.set_registered_model_alias(model_name, CHAMPION, version)


def _settle(client: "MlflowClient", model_name: str, record: Path | None, intent: Intent) -> None:
    """Complete a promotion or rollback whose alias has moved, else drop it; repeating it changes nothing."""
    model = client.get_registered_model(model_name)
    if intent.version is not None and str(model.aliases.get(CHAMPION)) == intent.version:
        client.set_registered_model_tag(model_name, CHAMPIONS_TAG, ",".join(intent.champions))
        about, tags = _tags(intent)
        version = client.get_model_version(model_name, about)
        for key in set(PAST_TAGS) & version.tags.keys():
            client.delete_model_version_tag(model_name, about, key)
        for key, value in tags.items():
            client.set_model_version_tag(model_name, about, key, value)
        if str(model.aliases.get(CHALLENGER)) == intent.version:
            client.delete_registered_model_alias(model_name, CHALLENGER)
        _write_record(client, version.run_id, intent.entry, record)
    forget_intent(client, model_name, intent)


def _tags(intent: Intent) -> tuple[str, dict[str, str]]:
    """The version that an intent is about, which a rollback withdraws, and the tags that tell of it."""
    assert intent.version is not None
    if intent.entry["event"] == ROLLED_BACK:
        return intent.entry["from"], dict(zip(PAST_TAGS, (intent.time, intent.by), strict=True))
    told = {"promoted_at": intent.time, "promoted_by": intent.by, "promoted_from": intent.entry["from"] or ""}
    return intent.version, told


def _write_record(client: "MlflowClient", run_id: str, entry: Mapping[str, Any], record: Path | None) -> None:
    """Keep a decision in the record and in the run of the version it is about: aliases have no history."""
    client.log_dict(run_id, dict(entry), f"promotions/{entry['time'].replace(':', '')}.json")
    _append(record, entry)


def _append(record: Path | None, entry: Mapping[str, Any]) -> None:
    """Append a line to the record, on the disk when this returns; once, however often it is called."""
    line = json.dumps(entry, allow_nan=False) + "\n"
    if record is None or (record.is_file() and line in record.read_text(encoding="utf-8").splitlines(True)):
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
