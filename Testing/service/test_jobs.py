"""Jobs over real HTTP with a real process: results, progress, queue, cancel, failures."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from GenSegLogic.errors import Cancelled, GenSegError
from GenSegLogic.results import Code, Segment
from GenSegLogic.service import Client, Job, ServiceProcess
from GenSegLogic.volume import Volume


def _wait_for(job: Job, state: str) -> None:
    end = time.monotonic() + 60
    while job.poll().state != state:
        assert time.monotonic() < end and not job.state.finished, job.state
        time.sleep(0.01)


def test_results_come_back_as_they_are(client: Client, scan: Volume) -> None:
    results = client.run("steps", {"points": [(1.5, 2, 3)]}, {"image": scan})
    negative = results.volumes["negative"]
    assert negative.voxels.dtype == np.int16 and np.array_equal(negative.voxels, -scan.voxels)
    assert np.array_equal(negative.affine, scan.affine)
    assert (negative.name, dict(negative.metadata)) == ("negative", {"modality": "CT"})
    segmentation = results.segmentations["negative"]
    assert np.array_equal(segmentation.labelmap.voxels, scan.voxels > 0)
    assert segmentation.labelmap.voxels.dtype == np.uint8
    assert segmentation.segments == (Segment(
        1, "Nodule 1", (1.0, 0.5, 0.0), Code("SCT", "49755003", "Morphologically Altered Structure"),
        Code("SCT", "27925004", "Nodule")),)
    assert results.tables == {"negative": [{"center_l_mm": 1.5, "volume_mm3": None, "count": 11}]}
    assert results.columns == {"negative": ("center_l_mm", "volume_mm3", "count")}
    assert results.synthetic == {"negative"} and results.summary == "11 voxels above 0."
    assert results.provenance["parameters"]["points"] == [[1.5, 2.0, 3.0]]
    assert results.provenance["inputs"]["image"]["name"] == "small"


def test_results_can_be_saved_and_changed(client: Client, scan: Volume, tmp_path: Path) -> None:
    results = client.run("steps", {}, {"image": scan})
    results.volumes["negative"].voxels[...] = 1  # their memory is the client's own
    assert {path.name for path in results.save(tmp_path).values()} >= {"negative.nrrd", "negative.seg.nrrd"}


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", "bool"])
def test_voxel_types_travel(client: Client, scan: Volume, dtype: str) -> None:
    mask = scan.with_voxels((scan.voxels % 3 == 0).astype(dtype))
    job = client.submit("steps", {}, {"image": scan, "mask": mask})
    assert job.wait().state == "done"
    record = job.results().provenance["inputs"]["mask"]
    assert record["voxel_type"] == dtype


def test_views_that_are_not_contiguous_travel(client: Client, scan: Volume) -> None:
    flipped = Volume(scan.voxels[:, ::-1, ::2], scan.affine)
    transposed = Volume(scan.voxels.transpose(2, 1, 0), scan.affine)
    for volume in (flipped, transposed):
        assert np.array_equal(client.run("steps", {}, {"image": volume}).volumes["negative"].voxels, -volume.voxels)


def test_nothing_is_left_behind(client: Client, scan: Volume) -> None:
    before = set(client.folder.iterdir())
    job = client.submit("steps", {}, {"image": scan})
    job.wait()
    assert len(set(client.folder.iterdir()) - before) == 3  # the scan, the volume, the labelmap
    job.delete()
    assert set(client.folder.iterdir()) == before
    with pytest.raises(GenSegError, match="no such job"):
        client.request("GET", f"/jobs/{job.id}")
    job.delete()  # a second time does no harm


def test_progress_is_seen_and_recorded(client: Client, scan: Volume) -> None:
    job = client.submit("steps", {"steps": 6, "seconds": 0.1}, {"image": scan})
    seen: list[tuple[float, str]] = []
    job.wait(lambda fraction, message: seen.append((fraction, message)))
    fractions = [fraction for fraction, _message in seen]
    assert fractions == sorted(fractions) and len(set(fractions)) >= 4
    events, following = job.events()
    assert [event["message"] for event in events if event["message"].startswith("Step ")] == [
        f"Step {step} of 6" for step in range(1, 7)]
    assert [event["number"] for event in events] == list(range(following))
    assert job.events(since=following) == ([], following)
    assert job.events(since=following - 2)[0] == events[-2:]


def test_cancel_stops_within_one_step(client: Client, scan: Volume) -> None:
    job = client.submit("steps", {"steps": 1000, "seconds": 0.1}, {"image": scan})
    _wait_for(job, "running")
    started = time.monotonic()
    job.cancel()
    assert time.monotonic() - started < 0.5
    assert job.wait().state == "cancelled"
    assert time.monotonic() - started < 5.0  # 1000 steps would take 100 s
    with pytest.raises(Cancelled):
        job.results()
    with pytest.raises(GenSegError, match="no results: it is cancelled"):
        client.request("GET", f"/jobs/{job.id}/results")


def test_jobs_run_one_after_another_and_a_waiting_one_can_be_cancelled(client: Client, scan: Volume) -> None:
    first = client.submit("steps", {"steps": 5, "seconds": 0.1}, {"image": scan})
    second = client.submit("steps", {}, {"image": scan})
    third = client.submit("steps", {}, {"image": scan})
    _wait_for(first, "running")
    assert second.poll().state == "queued" and third.poll().position == 2
    second.cancel()
    assert second.wait().state == "cancelled"
    assert first.wait().state == third.wait().state == "done"
    times = {job["id"]: job for job in client.request("GET", "/jobs")}
    assert times[third.id]["finished"] >= times[first.id]["finished"]


def test_progress_that_raises_cancels_the_job(client: Client, scan: Volume) -> None:
    def stop(fraction: float, message: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        client.run("steps", {"steps": 1000, "seconds": 0.05}, {"image": scan}, stop)
    assert client.request("GET", "/jobs") == []
    assert client.run("steps", {}, {"image": scan}).summary  # the device is free again


@pytest.mark.parametrize(("how", "said"), [
    ("sentence", "small has nothing to negate."),
    ("bug", "The task stopped unexpectedly (ZeroDivisionError: a bug); see the service's log."),
    ("leave", "The task stopped unexpectedly (SystemExit: a library's way out); see the service's log."),
    ("memory", "The memory"),
])
def test_a_failure_is_one_sentence_and_the_next_job_works(client: Client, scan: Volume, how: str, said: str) -> None:
    job = client.submit("steps", {"fail": how}, {"image": scan})
    assert job.wait().state == "failed"
    with pytest.raises(GenSegError) as failure:
        job.results()
    assert str(failure.value).startswith(said) and "\n" not in str(failure.value)
    assert client.run("steps", {}, {"image": scan}).summary == "11 voxels above 0."


def test_no_step_of_the_timers_interface_takes_long(client: Client) -> None:
    """A median is asserted, not the worst case: the machine may be busy."""
    scan = Volume(np.ones((100, 256, 256), np.int16), np.eye(4))
    client.run("steps", {}, {"image": scan})  # the first job imports PyTorch
    steps = []

    def timed(action):
        started = time.perf_counter()
        try:
            return action()
        finally:
            steps.append(time.perf_counter() - started)

    submitting = client.submitting("steps", {"steps": 10, "seconds": 0.02}, {"image": scan})
    while timed(lambda: next(submitting, None)) is not None:
        pass
    job = submitting.job
    while not timed(job.poll).finished:
        pass
    fetching = job.fetching()
    while timed(lambda: next(fetching, None)) is not None:
        pass
    assert np.array_equal(fetching.results.volumes["negative"].voxels, -scan.voxels)
    assert len(steps) > 10 and np.median(steps) < 0.05


def test_giving_up_a_transfer_deletes_what_was_sent(client: Client) -> None:
    before = set(client.folder.iterdir())
    submitting = client.submitting("steps", {}, {"image": Volume(np.zeros((64, 512, 512), np.int16), np.eye(4))})
    while next(submitting) < 0.3:
        pass
    assert len(set(client.folder.iterdir()) - before) == 1
    submitting.close()
    assert set(client.folder.iterdir()) == before
    with pytest.raises(GenSegError, match="not been sent"):
        _ = submitting.job


def test_a_warm_engine_has_little_overhead(start, scan: Volume) -> None:
    """Everything but the task's own steps: the second job's at most a tenth of the first one's, start included."""
    started = time.perf_counter()
    client = start().wait()
    client.run("steps", {}, {"image": scan})
    first = time.perf_counter() - started
    started = time.perf_counter()
    client.run("steps", {}, {"image": scan})
    assert time.perf_counter() - started < first / 10


def test_tasks_carry_ranges_and_help(client: Client) -> None:
    _echo, task = client.tasks()
    assert (task["name"], task["title"], set(task["inputs"])) == ("steps", "Steps", {"image", "mask"})
    parameters = {parameter["name"]: parameter for parameter in task["parameters"]}
    assert parameters["steps"] == {
        "name": "steps", "type": {"type": "integer"}, "default": 3, "help": "How many steps.", "minimum": 1,
        "maximum": 10000, "choices": None, "unit": ""}
    assert parameters["fail"]["choices"] == ["no", "sentence", "bug", "leave", "memory", "gpu", "exit"]
    assert parameters["points"]["type"]["type"] == "array" and parameters["points"]["default"] == []


def test_health_and_bundles(client: Client, scan: Volume) -> None:
    from GenSegLogic import __version__
    from GenSegLogic.bundles import list_bundles

    client.run("steps", {}, {"image": scan})
    health = client.health()
    assert (health["version"], health["status"], health["device"]) == (__version__, "ready", "cpu")
    assert health["devices"][0]["free_memory_bytes"] > 0 and health["process_memory_bytes"] > 0
    assert health["busy"] is False
    job = client.submit("steps", {"steps": 100, "seconds": 0.1}, {"image": scan})
    assert client.health()["busy"] is True
    job.delete()
    assert {bundle["name"] for bundle in client.bundles()} == {bundle.name for bundle in list_bundles()}


def test_the_description_names_every_address(client: Client) -> None:
    description = client.request("GET", "/openapi.json")
    assert set(description["paths"]) == {
        "/health", "/tasks", "/bundles", "/volumes", "/volumes/{volume_id}", "/jobs", "/jobs/{job_id}",
        "/jobs/{job_id}/events", "/jobs/{job_id}/cancel", "/jobs/{job_id}/results", "/jobs/{job_id}/outputs/{name}"}
    assert description["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_old_jobs_and_volumes_are_deleted(scan: Volume, tmp_path: Path) -> None:
    from GenSegLogic.service import exchange
    from GenSegLogic.service.models import JobRequest
    from GenSegLogic.service.server import Service

    service = Service(["cpu"], time_to_live=0.2)
    try:
        stored = service.volumes.announce(scan.voxels.shape, "int16", scan.affine.tolist(), "small", {})
        list(exchange.writing(stored.path, scan.voxels))
        service.delete_old()
        assert stored.path.exists()
        time.sleep(0.3)
        service.delete_old()
        assert not stored.path.exists() and service.volumes.get(stored.id) is None
        with pytest.raises(GenSegError, match="no task 'nothing'"):
            service.submit(JobRequest(task="nothing", parameters={}, volumes={}))
    finally:
        service.close()
    assert not service.exchange.folder.exists()


def test_every_device_has_a_queue_of_its_own(scan: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two queues on one device, for a second device is rarely there."""
    from GenSegLogic import tasks
    from GenSegLogic.service import exchange
    from GenSegLogic.service.models import JobRequest
    from GenSegLogic.service.server import Service

    monkeypatch.setitem(tasks.TASKS, "steps", "Testing.service.tiny_service:StepsTask")
    service = Service(["cpu", "auto"])
    try:
        stored = service.volumes.announce(scan.voxels.shape, "int16", scan.affine.tolist(), "small", {})
        list(exchange.writing(stored.path, scan.voxels))
        request = JobRequest(task="steps", parameters={}, volumes={"image": stored.id})
        assert [service.submit(request).device for _number in range(4)] == ["cpu", "auto", "cpu", "auto"]
        assert service.submit(request.model_copy(update={"device": "auto"})).device == "auto"
    finally:
        service.close()


def test_a_gpu_that_has_stopped_working_fails_every_job_until_a_restart(start, scan: Volume) -> None:
    client = start().wait()
    for how in ("gpu", "no"):
        with pytest.raises(GenSegError, match="The GPU has stopped working; restart the GenSeg service"):
            client.run("steps", {"fail": how}, {"image": scan})
    assert client.health()["status"] == "failed"


def test_the_log_tells_no_secrets(shared_service: ServiceProcess, client: Client, scan: Volume) -> None:
    client.run("steps", {}, {"image": Volume(scan.voxels, scan.affine, "Doe^Jane")})
    log = shared_service.log_path.read_text()
    assert "steps starts" in log
    assert client._token not in log and "Doe" not in log
