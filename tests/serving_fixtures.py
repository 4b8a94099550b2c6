"""Fixtures that the tests of serving share: a published model, and the HTTP face over it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serving.backend import Backend
from serving.config import Limits
from serving.loading import load_backend
from tests.serving_parts import client_of, save_random_model


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model as training publishes it."""
    folder = tmp_path_factory.mktemp("published") / "model"
    save_random_model(folder)
    return folder


@pytest.fixture(scope="session")
def backend(published: Path) -> Iterator[Backend]:
    """The model behind its engine, in this process."""
    loaded = load_backend(published, Limits(), device="cpu")
    yield loaded
    loaded.engine.drain(10)


@pytest.fixture
def face(backend: Backend) -> Iterator[TestClient]:
    """A client of the HTTP face over the real model."""
    with client_of(backend) as client:
        yield client
