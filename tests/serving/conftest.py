"""Fixtures that the tests of serving share: a published model, and the HTTP face over it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serving.config import Limits
from serving.loaded_model import LoadedModel
from serving.loading import load_model_for_serving
from tests.serving.parts import client_of, save_random_model


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model as training publishes it."""
    folder = tmp_path_factory.mktemp("published") / "model"
    save_random_model(folder)
    return folder


@pytest.fixture(scope="session")
def backend(published: Path) -> Iterator[LoadedModel]:
    """The model behind its engine, in this process."""
    loaded = load_model_for_serving(published, Limits(), device="cpu")
    yield loaded
    loaded.engine.drain(10)


@pytest.fixture
def face(backend: LoadedModel) -> Iterator[TestClient]:
    """A client of the HTTP face over the real model."""
    with client_of(backend) as client:
        yield client
