"""What travels as JSON, for FastAPI to check and to describe. Imported by the server only, for it needs pydantic."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .exchange import DTYPES


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class VolumeAnnouncement(_Body):
    """A volume that the client is about to write."""

    shape: list[int] = Field(description="Voxel counts in k, j, i order.", min_length=3, max_length=3)
    dtype: str = Field(description="NumPy's name of the voxel type.", max_length=16,
                       json_schema_extra={"enum": list(DTYPES)})
    affine: list[list[float]] = Field(description="4 by 4, (i, j, k, 1) to patient LPS mm.", min_length=4, max_length=4)
    name: str = Field("volume", description="What messages call it.", max_length=1000)
    metadata: dict[str, Any] = Field({}, description="Plain JSON values, e.g. modality.")


class VolumeAnswer(BaseModel):
    """A volume that was announced."""

    id: str
    path: str = Field(description="Where the client writes the voxels, as .npy in C order.")
    bytes: int = Field(description="Size of the voxels without the header.")


class JobRequest(_Body):
    """What to do with which volumes."""

    task: str = Field(description="A name from /tasks.", max_length=100)
    parameters: dict[str, Any] = Field({}, description="Parameter name to value; what is left out keeps its default.")
    volumes: dict[str, str] = Field(description="Role (image, lungs...) to the id of a volume that was sent.")
    device: str | None = Field(None, description="One of the devices in /health; left out: the one with least to do.")


class JobAnswer(BaseModel):
    """Where a job stands."""

    id: str
    task: str
    device: str
    state: str = Field(description="queued, running, done, failed or cancelled.")
    fraction: float = Field(description="How much is done, 0 to 1.")
    message: str = Field(description="What is being done, in words.")
    error: str = Field(description="One sentence, when it failed.")
    position: int = Field(description="How many jobs come before it.")
    created: float = Field(description="Seconds since the epoch.")
    finished: float | None
    event_count: int
    seconds: dict[str, float] = Field(description="Where the time went: queued, reading, running, writing.")


class Event(BaseModel):
    """One progress call of the task."""

    number: int
    time: float = Field(description="Seconds since the epoch.")
    fraction: float
    message: str


class EventsAnswer(BaseModel):
    """Events from a number on; the oldest may have been dropped."""

    events: list[Event]
    next: int = Field(description="What to ask for next.")


class DeviceAnswer(BaseModel):
    """One device and its queue."""

    wanted: str = Field(description="What the service was started with, e.g. auto.")
    device: str | None = Field(description="What that turned out to be; null while the engine starts.")
    jobs: int = Field(description="How many jobs run or wait.")
    free_memory_bytes: int | None
    problem: str = Field(description="Why it cannot be used, if so.")


class HealthAnswer(BaseModel):
    """Whether and where the service can work."""

    version: str
    status: str = Field(description="starting, ready, or failed: then it must be restarted.")
    busy: bool
    device: str | None = Field(description="The first device.")
    devices: list[DeviceAnswer]
    process_memory_bytes: int


class Refusal(BaseModel):
    """Why a request was not followed."""

    detail: str = Field(description="One sentence.")
