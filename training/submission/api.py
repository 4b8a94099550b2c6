"""The Kubernetes API server, asked with patience: an outage of minutes costs two lines of log."""

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from model.errors import UserError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
# How long an API server may be away.
PATIENCE_SECONDS = 1800.0
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0)
# Connect, read: a server whose machine has vanished answers nothing at all.
REQUEST_SECONDS = (5, 30)
# Statuses of a server, or of a webhook behind it, that is starting or has too much to do.
OUTAGE_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
NOT_FOUND, CONFLICT = 404, 409


class ApiServer:
    """Clients of one cluster and namespace.

    Args:
        namespace: None for that of the kubeconfig's context, or of the pod that this runs in.
        sleep: In tests, time that passes at once.

    Raises:
        UserError: no cluster is configured.
    """

    def __init__(
        self,
        namespace: str | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        from kubeflow.training import TrainingClient
        from kubernetes import client

        configuration, own_namespace = _configuration()
        # Retries are ours, with a word to the user.
        configuration.retries = False
        self.namespace = namespace or own_namespace
        self.training = TrainingClient(client_configuration=configuration, namespace=self.namespace)
        self.core: Any = self.training.core_api
        self.objects: Any = self.training.custom_api
        self.apps: Any = client.AppsV1Api(self.core.api_client)
        self._patience_seconds, self._sleep = patience_seconds, sleep

    def ask(self, call: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
        """What a call of a client returns; it is repeated while the server is away.

        Raises:
            kubernetes' ApiException: the server answers, and refuses.
            UserError: the server has been away too long, or does not let us.
        """
        began, delays = time.monotonic(), list(RETRY_SECONDS)
        waited = 0.0
        while True:
            try:
                answer = call(*arguments, **options)
            except _failures() as error:
                reason = _outage(error)
                if waited >= self._patience_seconds:
                    raise UserError(
                        f"the API server has not answered for {waited:.0f} s ({reason}); "
                        "what runs in the cluster runs on"
                    ) from None
                if not waited:
                    logger.warning(
                        "the API server does not answer (%s); asking again, what runs there runs on", reason
                    )
                delay = delays.pop(0) if len(delays) > 1 else delays[0]
                self._sleep(delay)
                waited = max(waited + delay, time.monotonic() - began)
            else:
                if waited:
                    logger.warning("the API server answers again after %.0f s", waited)
                return answer

    def find(self, call: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer | None:
        """The same; None for what is not there."""
        from kubernetes.client import ApiException

        try:
            return self.ask(call, *arguments, **options)
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise


def is_conflict(error: Exception) -> bool:
    """Whether a server refused to make what is there already."""
    return getattr(error, "status", None) == CONFLICT


def refusal(error: Exception) -> str:
    """What the API server says, as one sentence."""
    try:
        return str(json.loads(getattr(error, "body", "") or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(getattr(error, "reason", None) or error)


def _configuration() -> tuple[Any, str]:
    """How the cluster is reached and which namespace is ours."""
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)
            place = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
            with open(place, encoding="utf-8") as file:
                return configuration, file.read().strip()
        # The client reads the variable once, when it is imported.
        file_name = os.environ.get("KUBECONFIG")
        config.load_kube_config(file_name, client_configuration=configuration)
        context = config.list_kube_config_contexts(file_name)[1]["context"]
    except (config.ConfigException, OSError) as error:
        raise UserError(f"no cluster is configured: {error}; set KUBECONFIG") from None
    return configuration, context.get("namespace", "vargpt")


def _failures() -> tuple[type[Exception], ...]:
    """What a question may end with; a RuntimeError is the SDK's."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    return (ApiException, HTTPError, OSError, RuntimeError)


def _outage(error: Exception) -> str:
    """Why a server that is away did not answer. Raises the error itself when the server has answered."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    # The SDK wraps what it catches into a RuntimeError.
    cause = error if isinstance(error, ApiException) else error.__cause__ or error.__context__ or error
    if isinstance(cause, ApiException) and cause.status:
        if cause.status in OUTAGE_STATUSES:
            return f"{cause.status} {refusal(cause)}"
        if cause.status in (401, 403):
            raise UserError(f"the API server does not allow this: {refusal(cause)}") from None
        raise cause
    # What breaks within TLS, the client reports as a refusal without a status.
    if isinstance(cause, (ApiException, HTTPError, OSError)):
        return _short(cause)
    raise error


def _short(error: BaseException) -> str:
    """`Connection refused` and the like, without addresses of objects."""
    reason = getattr(error, "reason", None) or error
    lines = str(reason).strip().splitlines() or [""]
    return lines[-1].rpartition(": ")[2].strip(" )'\"") or type(reason).__name__
