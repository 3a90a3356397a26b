"""A service of small checkpoints, and a client for it."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from spanbert_jax.service.app import application
from spanbert_jax.service.service import Service, Settings, open_service
from tests.support.served import write_checkpoints


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The checkpoints of `write_checkpoints`, with one program for each model: rows of 16 pieces, or 24 of a task."""
    made = open_service(
        write_checkpoints(tmp_path_factory.mktemp("served")),
        Settings(deterministic=True, deadline=600, max_input_pieces=16),
    )
    made.engine.warm_up(everything=True)  # without the programs that fill gaps
    yield made
    made.close()


@pytest.fixture(scope="session")
def client(service: Service) -> TestClient:
    return TestClient(application(service))
