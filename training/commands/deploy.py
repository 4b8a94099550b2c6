"""The command `vargpt deploy`: the service in a cluster is rolled to the champion, tried first, or rolled
back.
"""

from typing import Annotated

import typer

from model.errors import UserError
from training.commands.cluster import Namespace
from training.commands.options import LOCAL_MLFLOW, MODEL_NAME, AsJson, Tracking, print_result
from training.commands.registry import RECORD, By, Name, Record, acting_user


def deploy(
    canary: Annotated[
        int | None,
        typer.Option(
            min=1, max=50, help="Percent of the traffic that tries the champion before all goes to it."
        ),
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Make the champion before champion again, and deploy it.")
    ] = False,
    observe: Annotated[float, typer.Option(min=1, help="Seconds that a canary is compared.")] = 120.0,
    min_requests: Annotated[int, typer.Option(min=1, help="Of a canary, to decide by.")] = 20,
    name: Name = MODEL_NAME,
    by: By = "",
    record: Record = RECORD,
    namespace: Namespace = None,
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Roll the service in the cluster to the champion; a version that does not come up changes nothing."""
    from training.deployment.canary import Canary, CanaryRules
    from training.deployment.lineage_labels import registered_versions, write_registered
    from training.deployment.rollout import Deployments
    from training.registry.promotion import roll_back
    from training.submission.api import ApiServer

    def say(line: str) -> None:
        typer.echo(line, err=True)

    if canary and rollback:
        raise UserError("--canary tries a new champion, --rollback returns to a former one: give one of them")
    server = ApiServer(namespace)
    if rollback:
        roll_back(tracking_uri, name, acting_user(by), record)
    known, champion = registered_versions(tracking_uri, name)
    write_registered(server, known)
    deployments = Deployments(server, say)
    if champion.labels.items() <= deployments.labels("vargpt").items():
        deployments.wait("vargpt")
        text = f"{champion} is deployed already"
    elif canary:
        Canary(server, say).run(
            champion, canary, CanaryRules(observe_seconds=observe, min_requests=min_requests)
        )
        text = f"{champion} is deployed, after a trial with {canary} % of the traffic"
    else:
        deployments.roll("vargpt", champion.labels)
        text = f"{champion} is deployed"
    print_result({"version": champion.version, "weights": champion.weights}, text, as_json)
