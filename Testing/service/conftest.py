"""A real service process for the tests, with the small task of ``tiny_service.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra 'service' is not installed")

from GenSegLogic.service import Client, ServiceProcess
from GenSegLogic.volume import Volume

PROGRAM = Path(__file__).with_name("tiny_service.py")


@pytest.fixture(scope="session")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One service for all tests that leave it alive."""
    with ServiceProcess.start(device="cpu", program=PROGRAM,
                              log_path=tmp_path_factory.mktemp("service") / "service.log") as service:
        service.wait()
        yield service


@pytest.fixture
def client(shared_service: ServiceProcess) -> Iterator[Client]:
    """Its client; afterwards the service must be alive and hold no job."""
    client = shared_service.wait()
    yield client
    for job in client.request("GET", "/jobs"):
        client.request("DELETE", f"/jobs/{job['id']}")
    assert shared_service.running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], ServiceProcess]]:
    """Starts services that a test may kill."""
    started = []

    def start() -> ServiceProcess:
        started.append(ServiceProcess.start(device="cpu", program=PROGRAM, log_path=tmp_path / "service.log"))
        return started[-1]

    yield start
    for service in started:
        service.kill()


@pytest.fixture
def scan() -> Volume:
    """24 voxels from -12 to 11, oblique and left-handed."""
    affine = np.array([[0.0, 1.6, 0.6, -10], [-2.0, 0, 0, 5], [0, 1.2, -0.8, 7], [0, 0, 0, 1]])
    affine[:3, 1] *= -1
    return Volume(np.arange(-12, 12, dtype=np.int16).reshape(2, 3, 4), affine, "small", {"modality": "CT"})
