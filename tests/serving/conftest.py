"""Fixtures that the tests of serving share: a published model, the model loaded, and an HTTP client of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serving.config import Limits
from serving.loaded_model import LoadedModel
from serving.loading import load_model_for_serving
from tests.serving.parts import http_client, save_random_model


@pytest.fixture(scope="session", autouse=True)
def bento_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A BentoML store of these tests' own: a server that starts clears the metrics of others in its store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(tmp_path_factory.mktemp("bentoml")))
        yield


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model as training publishes it."""
    folder = tmp_path_factory.mktemp("published") / "model"
    save_random_model(folder)
    return folder


@pytest.fixture(scope="session")
def loaded_model(published: Path) -> Iterator[LoadedModel]:
    """The model behind its engine, in this process."""
    loaded = load_model_for_serving(published, Limits(), device="cpu")
    yield loaded
    loaded.engine.drain(10)


@pytest.fixture
def http(loaded_model: LoadedModel) -> Iterator[TestClient]:
    """A client of the HTTP API over the real model."""
    with http_client(loaded_model) as client:
        yield client
