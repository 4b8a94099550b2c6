"""The command `vargpt deploy`: the service in a cluster is rolled to the champion, tried first, or rolled
back.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import UserError
from training.commands.cluster import Namespace
from training.commands.options import (
    LOCAL_MLFLOW,
    MODEL_NAME,
    AsJson,
    ParamsFile,
    Size,
    Tracking,
    print_result,
)
from training.commands.registry import RECORD, By, Name, Record, acting_user

if TYPE_CHECKING:
    from training.deployment.canary_rules import CanaryRules
    from training.deployment.registered_versions import RegisteredVersion, RegisteredVersions
    from training.registry.promotion import Promotion
    from training.submission.api import ApiServer

GO_BACK = "`vargpt rollback` makes the champion before champion again"


def deploy(
    canary: Annotated[
        int | None, typer.Option(min=1, max=50, help="Percent of the traffic that tries a version first.")
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="What --canary tries, by its number; it becomes champion if it is good."),
    ] = None,
    alias: Annotated[
        str | None, typer.Option(help="What --canary tries, by its alias; default: champion.")
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Make the champion before champion again, and deploy it.")
    ] = False,
    observe: Annotated[float, typer.Option(min=1, help="Seconds that a canary is compared.")] = 120.0,
    min_requests: Annotated[int, typer.Option(min=1, help="Of a canary, to decide by.")] = 20,
    params: ParamsFile = Path("params.yaml"),
    size: Size = None,
    name: Name = MODEL_NAME,
    by: By = "",
    record: Record = RECORD,
    namespace: Namespace = None,
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Roll the service in the cluster to the champion; a version that does not come up changes nothing.

    A version that was tried and not taken is not rolled out, unless it is tried again and taken.
    """
    _refuse_contradictions(canary, version, alias, rollback)
    from training.registry.promotion import promote, roll_back
    from training.submission.api import ApiServer

    server, who = ApiServer(namespace), acting_user(by) if canary or rollback else ""
    if rollback:
        roll_back(tracking_uri, name, who, record)
    registered, wanted = _registered(server, tracking_uri, name, version, alias)
    if _is_deployed(server, wanted):
        text = f"{wanted} is deployed already"
    elif canary is None:
        _roll_out(server, wanted)
        text = f"{wanted} is deployed"
    else:
        rules = _rules(params, size, observe, min_requests)
        make_champion = functools.partial(promote, tracking_uri, name, by=who, record=record)
        _try_out(server, registered, wanted, canary, rules, make_champion)
        text = f"{wanted} is deployed, after a trial with {canary} % of the traffic"
    print_result({"version": wanted.version, "weights": wanted.weights}, text, as_json)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _refuse_contradictions(
    canary: int | None, version: str | None, alias: str | None, rollback: bool
) -> None:
    if canary and rollback:
        raise UserError("--canary tries a new version, --rollback returns to a former one: give one of them")
    if version and alias:
        raise UserError("--version and --alias both name what is tried: give one of them")
    if (version or alias) and not canary:
        raise UserError("--version and --alias name what --canary tries; what is deployed is the champion")


def _registered(
    server: "ApiServer", uri: str, name: str, version: str | None, alias: str | None
) -> "tuple[RegisteredVersions, RegisteredVersion]":
    """What the registry knows, which admission is told, and the version that is asked for."""
    from training.deployment.registered_versions import registered_versions, write_registered
    from training.registry.versions import CHAMPION

    registered = registered_versions(uri, name)
    write_registered(server, registered.versions)
    return registered, registered.numbered(version) if version else registered.named(alias or CHAMPION)


def _is_deployed(server: "ApiServer", wanted: "RegisteredVersion") -> bool:
    """Whether all pods are of a version; waits until they answer."""
    from training.deployment.canary import STABLE
    from training.deployment.rollout import Deployments

    deployments = Deployments(server, _say)
    if not wanted.labels.items() <= deployments.labels(STABLE).items():
        return False
    deployments.wait(STABLE)
    return True


def _roll_out(server: "ApiServer", champion: "RegisteredVersion") -> None:
    """Roll everything to the champion, unless it was tried and refused."""
    from training.deployment.canary import STABLE
    from training.deployment.refusals import Refusals
    from training.deployment.rollout import Deployments

    deployments = Deployments(server, _say)
    if reason := Refusals(deployments, STABLE).reason(champion):
        raise UserError(
            f"{champion}, the champion, was tried and not taken: {reason}; {GO_BACK}, "
            "`vargpt deploy --canary` tries it again"
        )
    deployments.roll(STABLE, champion.labels)


def _rules(params: Path, size: str | None, observe: float, min_requests: int) -> "CanaryRules":
    from training.deployment.canary_rules import CanaryRules
    from training.params import load_params

    gates = load_params(params, size).promote
    return CanaryRules(
        margins=gates.margins, floors=gates.floors, observe_seconds=observe, min_requests=min_requests
    )


def _try_out(
    server: "ApiServer",
    registered: "RegisteredVersions",
    wanted: "RegisteredVersion",
    percent: int,
    rules: "CanaryRules",
    promote: "Callable[..., Promotion]",
) -> None:
    """Try a version, make it the champion if it is not, and roll everything to it. UserError if refused."""
    from training.deployment.canary import STABLE, Canary
    from training.registry.versions import CHAMPION

    is_champion = registered.aliases.get(CHAMPION) == wanted.version

    def make_champion() -> str | None:
        if is_champion:
            return None
        return promote(wanted.version, margins=rules.margins, floors=rules.floors).objection

    canary = Canary(server, _say)
    stable = registered.of_pods(canary.deployments.labels(STABLE))
    if objection := canary.run(wanted, stable, percent, rules, make_champion):
        hint = f"; it is still the champion, and not rolled out: {GO_BACK}" if is_champion else ""
        raise UserError(f"{wanted} was tried and not taken: {objection}{hint}")
