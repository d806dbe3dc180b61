"""The engine: devices, memory, stepping down, cancelling, provenance, reproducibility, warm bundles."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import SimpleITK
import torch

import GenSegLogic
import GenSegLogic.engine as engine_module
from GenSegLogic import Cancelled, Engine, GenSegError, Results, Volume, memory, provenance
from GenSegLogic.bundles import Bundle, find_bundle
from GenSegLogic.bundles.folders import cached_bundles_folder
from GenSegLogic.engine import Attempt, ladder, precision
from GenSegLogic.progress import Progress
from GenSegLogic.task import parameter
from Testing.logic.bundle_samples import write_sample
from Testing.logic.threshold_task import ThresholdTask, bright_scan

MEGABYTE = 1_000_000


@dataclasses.dataclass(frozen=True)
class NetworkTask(ThresholdTask):
    """Runs bundles' networks on random voxels; can be told to die in the ways in which real work dies."""

    name: ClassVar[str] = "network"
    bundle: str = parameter("", "Bundle.")
    second: str = parameter("", "Another bundle.")
    fail_above: int = parameter(1000, "Windows above it fail.")
    failure: str = parameter("numpy", "How they fail.")

    def bundles(self, volumes: Mapping[str, Volume]) -> tuple[Bundle, ...]:
        return tuple(find_bundle(name) for name in filter(None, (self.bundle, self.second)))

    def run(self, volumes: Mapping[str, Volume], engine: Engine, progress: Progress) -> Results:
        scores = []
        voxels = torch.randn(1, 1, 32, 32)  # from the global generator, which the engine seeds
        for name in filter(None, (self.bundle, self.second)):
            scores.append(engine.networks(name).networks["predictor"](voxels.to(engine.device)).sum())
        if self.window > self.fail_above:
            if self.failure == "numpy":
                np.empty(2**60, np.uint8)
            if self.failure == "torch":
                torch.empty(2**60, dtype=torch.uint8)
            if self.failure == "SimpleITK":
                SimpleITK.Image((2**20, 2**20, 2**10), SimpleITK.sitkFloat64)
            if self.failure.startswith("CU"):
                raise RuntimeError(self.failure)
            torch.ones(2, 3) @ torch.ones(2, 3)
        numbers = " ".join(f"{float(score):.9e}" for score in scores)
        return Results(summary=f"window {self.window}, deterministic {torch.are_deterministic_algorithms_enabled()}, "
                               f"networks {numbers}")


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three small bundles with real networks, in a cache folder of this test's own."""
    monkeypatch.setenv("GENSEG_HOME", str(tmp_path / "home"))
    names = ["net-a", "net-b", "net-c"]
    for seed, name in enumerate(names):
        write_sample(cached_bundles_folder() / name, seed)
    return names


# Devices


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_a_device_that_is_none_is_refused_in_one_sentence(device: str) -> None:
    with pytest.raises(GenSegError) as caught:
        Engine(device)
    assert str(caught.value) == f"The device is {device!r}, but must be auto, cpu, cuda or cuda:N."


def test_auto_is_the_gpu_where_one_works_and_else_the_cpu() -> None:
    assert Engine().device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert Engine("cpu").device == torch.device("cpu")
    assert Engine("cpu").dtype == precision(torch.device("cpu"))


def test_a_gpu_that_is_not_there_is_refused_with_the_reason_and_the_way_out() -> None:
    with pytest.raises(GenSegError) as caught:
        _ = Engine("cuda:63").device
    assert str(caught.value).startswith("The device cuda:63 cannot be used: ")
    assert "GPU" in str(caught.value) and str(caught.value).endswith("choose --device cpu or auto.")


# Inputs


def test_a_scan_may_be_given_alone_or_by_role() -> None:
    scan = bright_scan()
    alone = Engine("cpu").run(ThresholdTask(), scan)
    by_role = Engine("cpu").run(ThresholdTask(), {"image": scan, "mask": scan.with_voxels(scan.voxels > 350)})
    assert alone.summary == "2 bright spots."
    assert by_role.summary == "1 bright spots."
    assert set(by_role.provenance["inputs"]) == {"image", "mask"}


def test_missing_and_unknown_inputs_are_named() -> None:
    with pytest.raises(GenSegError, match="there is no scan"):
        Engine("cpu").run(ThresholdTask(), {"mask": bright_scan()})
    with pytest.raises(GenSegError, match="'lungs' is no input of this task; it takes image, mask"):
        Engine("cpu").run(ThresholdTask(), {"image": bright_scan(), "lungs": bright_scan()})


# Reproducibility


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    def filtered(seed: int) -> bytes:
        results = Engine("cpu").run(ThresholdTask(noise=30.0, seed=seed), bright_scan())
        return results.volumes["filtered"].voxels.tobytes()

    assert filtered(3) == filtered(3)
    assert filtered(3) != filtered(4)


def test_global_generators_and_settings_are_seeded_inside_and_untouched_outside(bundles: list[str]) -> None:
    task = NetworkTask(bundle=bundles[0], seed=5)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = Engine("cpu").run(task, bright_scan())
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    second = Engine("cpu").run(task, bright_scan())
    assert "deterministic True" in first.summary
    assert not torch.are_deterministic_algorithms_enabled()
    assert first.summary == second.summary
    assert Engine("cpu").run(dataclasses.replace(task, seed=6), bright_scan()).summary != first.summary


# Memory


def test_a_task_that_fits_runs_as_asked() -> None:
    results = Engine("cpu", memory_limits={"cpu": 2000 * MEGABYTE}).run(ThresholdTask(window=64), bright_scan())
    assert results.messages == []
    assert "parameters_used" not in results.provenance


def test_the_engine_steps_down_to_the_window_that_fits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "precision", lambda device: torch.float32)  # the needs below are in float32
    engine = Engine("cpu", memory_limits={"cpu": 200 * MEGABYTE})  # 64^3 needs 1.0 GB, 32^3 0.1 GB
    results = engine.run(NetworkTask(window=128), bright_scan())
    assert results.summary.startswith("window 32,")
    assert results.messages == [
        "The memory of cpu is too small (8.4 GB needed, 0.2 GB free), so the task went on with a smaller window.",
        "The memory of cpu is too small (1.0 GB needed, 0.2 GB free), so the task went on with a smaller window.",
    ]
    assert results.provenance["parameters"]["window"] == 128
    assert results.provenance["parameters_used"]["window"] == 32
    assert results.provenance["messages"] == results.messages


def test_a_task_that_fits_nowhere_is_refused_before_it_starts() -> None:
    calls: list[str] = []
    with pytest.raises(GenSegError) as caught:
        Engine("cpu", memory_limits={"cpu": MEGABYTE}).run(
            ThresholdTask(), bright_scan("chest.nrrd"), lambda fraction, message: calls.append(message))
    sentence = str(caught.value)
    assert "Threshold on chest.nrrd" in sentence and sentence.count(". ") == 0 and sentence.endswith("free.")
    assert not any(message.startswith("Step") for message in calls)


@pytest.mark.parametrize("failure", [
    "numpy", "torch", "SimpleITK", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory\nCUDA kernel errors might be reported later",
])
def test_running_out_of_memory_steps_down_once_for_each_rung(failure: str) -> None:
    results = Engine("cpu").run(NetworkTask(window=128, fail_above=32, failure=failure), bright_scan())
    assert results.summary.startswith("window 32,")
    assert results.messages == [
        "The memory of cpu ran out, so the task went on with a smaller window."]  # said once, though it happened twice
    with pytest.raises(GenSegError, match=r"^The memory of cpu ran out for Threshold on scan\.nrrd"):
        Engine("cpu").run(NetworkTask(window=32, fail_above=1, failure=failure), bright_scan())


def test_a_defect_is_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Engine("cpu").run(NetworkTask(fail_above=1, failure="defect"), bright_scan())


def test_the_ladder_from_a_gpu_is_window_then_precision_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "precision", lambda device: torch.float32)
    rungs = list(ladder(ThresholdTask(window=64), torch.device("cuda:0")))
    assert [(rung.task.window, rung.device.type, rung.dtype.itemsize) for rung in rungs] == [
        (64, "cuda", 4), (32, "cuda", 4), (16, "cuda", 4), (16, "cuda", 2), (64, "cpu", 4), (32, "cpu", 4),
        (16, "cpu", 4)]
    assert [rung.change for rung in rungs] == [
        "", *["with a smaller window"] * 2, "in half precision", "on the CPU", *["with a smaller window"] * 2]


def test_a_task_that_feeds_float32_runs_in_half_precision_as_well(
    bundles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rung of the ladder that this machine, without a GPU, would not reach: here on the CPU."""
    task = NetworkTask(bundle=bundles[0], second=bundles[1])
    full_rung = [Attempt(task, torch.device("cpu"), torch.float32)]
    monkeypatch.setattr(engine_module, "ladder", lambda task, device: full_rung)
    full = Engine("cpu").run(task, bright_scan())
    half = [Attempt(task, torch.device("cpu"), torch.bfloat16, "in half precision")]
    monkeypatch.setattr(engine_module, "ladder", lambda task, device: half)
    results = Engine("cpu").run(task, bright_scan())
    assert results.provenance["precision"] == "bfloat16"
    numbers = [[float(word) for word in outcome.summary.split("networks ")[1].split()] for outcome in (full, results)]
    assert numbers[0] != numbers[1]
    assert np.allclose(*numbers, rtol=0.05, atol=0.05)


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    import psutil

    assert 0 < memory.free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    limit, usage, statistics = tmp_path / "max", tmp_path / "current", tmp_path / "stat"
    limit.write_text("1000\n")
    usage.write_text("700\n")
    statistics.write_text("anon 500\ninactive_file 150\n")
    assert memory.container_free_bytes(limit, usage, statistics) == 450
    limit.write_text("max\n")
    assert memory.container_free_bytes(limit, usage, statistics) is None
    assert memory.container_free_bytes(tmp_path / "none", usage, statistics) is None


# Warm bundles


def test_networks_stay_warm_between_runs_and_follow_the_files(bundles: list[str]) -> None:
    engine = Engine("cpu")
    first = engine.networks(bundles[0])
    assert engine.networks(bundles[0]) is first
    write_sample(cached_bundles_folder() / bundles[0], seed=7)
    again = engine.networks(bundles[0])
    assert again.bundle.digest != first.bundle.digest
    assert not any(parameter.requires_grad for parameter in again.networks["predictor"].parameters())


def test_the_least_recently_used_bundle_is_dropped_when_a_task_needs_its_memory(bundles: list[str]) -> None:
    task = ThresholdTask(window=16)
    need = task.memory_bytes({}, Engine("cpu"))
    probe = Engine("cpu", memory_limits={"cpu": need})
    probe.networks(bundles[0])
    size = need - probe.free_bytes()
    engine = Engine("cpu", memory_limits={"cpu": need + size})
    for name in (bundles[0], bundles[1], bundles[0]):
        engine.networks(name)
    results = engine.run(task, bright_scan())
    assert results.messages == []
    assert engine.warm_bundles() == [bundles[0]]


def test_bundles_that_the_task_itself_names_are_not_dropped_for_it(bundles: list[str]) -> None:
    task = NetworkTask(window=16, bundle=bundles[0])
    engine = Engine("cpu", memory_limits={"cpu": task.memory_bytes({}, Engine("cpu"))})
    loaded = engine.networks(bundles[0])
    engine.networks(bundles[1])
    assert engine.run(task, bright_scan()).messages == []
    assert engine.networks(bundles[0]) is loaded
    assert engine.warm_bundles() == [bundles[0]]


@dataclasses.dataclass(frozen=True)
class FrugalTask(NetworkTask):
    """Needs no memory but that of its networks."""

    def memory_bytes(self, volumes: Mapping[str, Volume], engine: Engine) -> int:
        return 0


def test_loading_a_bundle_makes_room_but_never_from_the_running_task(bundles: list[str]) -> None:
    engine = Engine("cpu", memory_limits={"cpu": int(1.5 * find_bundle(bundles[0]).size_bytes)})
    engine.networks(bundles[2])
    engine.networks(bundles[0])
    assert engine.warm_bundles() == [bundles[0]]
    results = engine.run(FrugalTask(bundle=bundles[0], second=bundles[1]), bright_scan())
    assert set(results.provenance["bundles"]) == set(bundles[:2])
    assert engine.warm_bundles() == bundles[:2]
    engine.release()
    assert engine.warm_bundles() == []


# Cancelling, and one at a time


def test_cancelling_comes_through_within_one_step_and_leaves_the_engine_usable() -> None:
    engine, seen = Engine("cpu"), []

    def cancel_at_second_step(fraction: float, message: str) -> None:
        seen.append(message)
        if message == "Step 2 of 4":
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.run(ThresholdTask(), bright_scan(), cancel_at_second_step)
    assert seen[-1] == "Step 2 of 4"
    assert engine.run(ThresholdTask(), bright_scan()).summary == "2 bright spots."


def test_tasks_from_two_threads_run_one_after_the_other_and_a_waiting_one_can_be_cancelled() -> None:
    engine, entered, leave = Engine("cpu"), threading.Event(), threading.Event()
    finished: list[Results] = []

    def hold(fraction: float, message: str) -> None:
        if message == "Step 1 of 4":
            entered.set()
            assert leave.wait(30)

    first = threading.Thread(target=lambda: finished.append(engine.run(ThresholdTask(), bright_scan(), hold)))
    first.start()
    assert entered.wait(30)

    def give_up(fraction: float, message: str) -> None:
        assert message == "Waiting for the task before this one"
        raise Cancelled

    with pytest.raises(Cancelled):
        engine.run(ThresholdTask(), bright_scan(), give_up)
    leave.set()
    first.join(30)
    assert [results.summary for results in finished] == ["2 bright spots."]


# Provenance


def test_the_record_names_everything_that_shaped_the_result(bundles: list[str]) -> None:
    scan = bright_scan("chest.nrrd")
    scan = Volume(scan.voxels, scan.affine, scan.name, {"repairs": ["Padding was set to -1024."]})
    thick = scan.affine @ np.diag([1, 1, 2, 1])
    task = NetworkTask(bundle=bundles[0], seed=11)
    results = Engine("cpu").run(task, Volume(scan.voxels, thick, scan.name, scan.metadata))
    record = results.provenance
    bundle = Engine("cpu").networks(bundles[0]).bundle
    assert record["genseg"] == GenSegLogic.__version__
    assert "not for clinical use" in record["notice"]
    assert (record["task"], record["seed"], record["device"], record["precision"]) == (
        "network", 11, "cpu", str(precision(torch.device("cpu"))).removeprefix("torch."))
    assert record["parameters"] == provenance.plain(task.describe())
    assert record["bundles"] == {bundles[0]: {"digest": bundle.digest, "licence": "Apache-2.0"}}
    assert record["versions"]["torch"] == torch.__version__ and "monai" in record["versions"]
    assert record["inputs"]["image"]["shape_kji"] == [12, 20, 24]
    assert np.allclose(record["inputs"]["image"]["affine_ijk_to_lps_mm"], thick, rtol=0, atol=0)
    assert record["messages"] == ["Padding was set to -1024.", "The slices are thick."] == results.messages
    assert record["duration_seconds"] > 0 and record["started"].endswith("+00:00")


def test_the_voxels_digest_depends_on_values_not_on_memory_layout() -> None:
    scan = bright_scan()
    turned = Volume(np.asfortranarray(scan.voxels), scan.affine)
    changed = scan.voxels.copy()
    changed[0, 0, 0] += 1
    digest = provenance.describe_volume(scan)["sha256"]
    assert provenance.describe_volume(turned)["sha256"] == digest
    assert provenance.describe_volume(Volume(changed, scan.affine))["sha256"] != digest


def test_names_are_imported_on_first_use_and_torch_only_when_something_runs() -> None:
    code = ("import sys, GenSegLogic\n"
            "from GenSegLogic import Engine, GenSegError, Results, Task, Volume, read_volume\n"
            "Engine()\n"
            "assert not {'torch', 'monai', 'matplotlib'} & set(sys.modules)\n"
            "try:\n    GenSegLogic.Nothing\nexcept AttributeError:\n    print('ok')")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (process.stdout.strip(), process.stderr) == ("ok", "")


def test_every_public_name_is_there() -> None:
    for name in GenSegLogic.__all__:
        assert getattr(GenSegLogic, name) is not None
