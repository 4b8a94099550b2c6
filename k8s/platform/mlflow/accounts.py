"""Makes MLflow's accounts, repeatably: trainers write runs and register what they trained, only the promoter
writes the model whose champion is served.
"""

import os
from typing import Any

import requests

API = os.environ["MLFLOW"] + "/api/"
MODEL, TRAINED_MODEL, EXPERIMENT = "vargpt", "vargpt-trained", "vargpt"


def call(method: str, path: str, accept: tuple[int, ...] = (200,), **body: Any) -> dict[str, Any]:
    """What the server says to the administrator."""
    admin = ("admin", os.environ["ADMIN_PASSWORD"])
    place = {"params": body} if method == "GET" else {"json": body}
    reply = requests.request(method, API + path, auth=admin, timeout=60, **place)
    if reply.status_code not in accept:
        raise SystemExit(f"{path}: {reply.status_code} {reply.text[:300]}")
    return reply.json() if reply.text else {}


def account(kind: str) -> str:
    """An account with the password of its secret; its name."""
    name, password = os.environ[kind], os.environ[f"{kind}_PASSWORD"]
    call("POST", "2.0/mlflow/users/create", (200, 400), username=name, password=password)
    call("PATCH", "2.0/mlflow/users/update-password", username=name, password=password)
    return name


def grant(name: str, kind: str, pattern: str, permission: str) -> None:
    """A permission, which an account may have already."""
    what = {"resource_type": kind, "resource_id": pattern, "resource_pattern": pattern}
    accept = (200, 400, 409)
    call("POST", "3.0/mlflow/users/permissions/grant", accept, username=name, permission=permission, **what)


def main() -> None:
    """Accounts, the experiment and the registered models, and who may write them."""
    trainer, promoter = account("TRAINER"), account("PROMOTER")
    for model in (MODEL, TRAINED_MODEL):
        call("POST", "2.0/mlflow/registered-models/create", (200, 400), name=model)
    call("POST", "2.0/mlflow/experiments/create", (200, 400), name=EXPERIMENT)
    found = call("GET", "2.0/mlflow/experiments/get-by-name", experiment_name=EXPERIMENT)
    experiment = found["experiment"]["experiment_id"]
    for name in (trainer, promoter):
        grant(name, "experiment", experiment, "EDIT")
    grant(trainer, "registered_model", TRAINED_MODEL, "EDIT")
    grant(promoter, "registered_model", MODEL, "MANAGE")


main()
