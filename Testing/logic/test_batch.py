"""Cohorts: every case ends in a result or in one sentence, on processes and on Ray; resuming; cancelling."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK
import torch

from GenSegLogic import GenSegError, Volume, cli, cohort, memory, read_volume, write_volume
from GenSegLogic.phantoms import KINDS
from GenSegLogic.tasks import TASKS
from Testing.logic.bundle_samples import write_sample
from Testing.logic.genseg_process import start, wait_for
from Testing.logic.threshold_task import TARGET, ThresholdTask, bright_scan, save_scan


@pytest.fixture(autouse=True)
def threshold_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "threshold", TARGET)
    monkeypatch.setitem(KINDS, "cube", f"{__name__}:cube")


def cube(seed: int) -> dict[str, Volume]:
    """A phantom."""
    return {"image": bright_scan("image")}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three good cases in three forms, one that is refused, one that hits a defect, and files that are no case."""
    folder = tmp_path / "in"
    save_scan(folder, "a.nrrd")
    save_scan(folder / "b", "ct.nii.gz")
    save_scan(folder, "c.mha")
    save_scan(folder, "crash.nrrd")
    save_scan(folder, "empty.nii")
    save_scan(folder, "a.seg.nrrd")
    (folder / "notes.txt").write_text("no case")
    (folder / "nothing").mkdir()
    return folder


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_cases_are_files_and_folders(scans: Path) -> None:
    cases = cohort.find_cases(scans)
    assert [case.name for case in cases] == ["a", "b", "c", "crash", "empty"]
    assert cases[1].image == scans / "b" / "ct.nii.gz"


def test_cases_of_one_name_are_told_apart_whatever_the_disk_thinks_of_capitals(tmp_path: Path) -> None:
    for name in ("one.nrrd", "ONE.nii.gz", "two.mha"):
        save_scan(tmp_path, name)
    assert sorted(case.name for case in cohort.find_cases(tmp_path)) == ["ONE.nii.gz", "one.nrrd", "two"]


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_scan(tmp_path, f"{name}.nrrd")
        save_scan(tmp_path / name, "ct.nrrd")
    assert [case.name for case in cohort.find_cases(tmp_path)] == ["one", "one.nrrd", "two", "two.nrrd"]


def test_the_output_is_no_case_and_an_empty_folder_is_refused(scans: Path, tmp_path: Path) -> None:
    shutil.copytree(scans / "b", scans / "out" / "b")
    assert "out" not in [case.name for case in cohort.find_cases(scans, output=scans / "out")]
    with pytest.raises(GenSegError, match="holds no scans"):
        cohort.find_cases(scans / "nothing")
    with pytest.raises(GenSegError, match="is not a folder"):
        cohort.find_cases(tmp_path / "none")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_case_ends_and_failures_are_told_at_the_end(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    """With workers, one of them is killed as the system kills for lack of memory: it takes only its case with it."""
    out = tmp_path / "out"
    bad = ["crash", "empty"]
    if workers > 1:
        save_scan(scans, "killed.nrrd")
        bad.append("killed")
    code = run("batch", "threshold", scans, "-o", out, "--workers", workers, "--device", "cpu", "--threshold", 350,
               "--json")
    captured = capsys.readouterr()
    assert code == 1
    assert captured.err == (f"genseg: {len(bad)} of {3 + len(bad)} cases failed ({', '.join(bad)}); "
                            f"{out / 'threshold.csv'} says why.\n")
    lines = captured.out.splitlines()
    assert sum("1 bright spots." in line for line in lines[:-1]) == 3
    assert sum("failed: " in line for line in lines[:-1]) == len(bad)
    result = json.loads(lines[-1])
    assert [case["case"] for case in result["cases"]] == ["a", "b", "c", *bad]
    assert result["failed"] == bad
    assert sorted(path.name for path in out.iterdir()) == [
        "a", "b", "c", "cases.csv", "provenance.json", "threshold.csv"]
    table = rows(out / "threshold.csv")
    assert [(row["case"], row["name"]) for row in table] == [
        ("a", "Bright 1"), ("b", "Bright 1"), ("c", "Bright 1"), *((name, "") for name in bad)]
    assert table[0]["volume_mm3"] == rows(out / "a" / "bright.csv")[0]["volume_mm3"]
    assert "ZeroDivisionError" in table[3]["error"]
    assert table[4]["error"] == "empty.nii shows no body; choose another scan."
    assert workers == 1 or table[5]["error"].startswith("The worker process died")
    assert [row["rows"] for row in rows(out / "cases.csv")] == ["1", "1", "1", *["0"] * len(bad)]


def test_all_well_is_0_and_a_case_without_findings_keeps_its_row(tmp_path: Path) -> None:
    save_scan(tmp_path / "in", "a.nrrd")
    assert run("batch", "threshold", tmp_path / "in", "-o", tmp_path / "out", "--threshold", 3000) == 0
    assert rows(tmp_path / "out" / "threshold.csv") == [
        {"case": "a", "error": "", "name": "", "center_l_mm": "", "center_p_mm": "", "center_s_mm": "",
         "volume_mm3": ""}]


def test_resume_redoes_what_changed_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "d"):
        save_scan(tmp_path / "in", f"{name}.nrrd")

    def resumed(*words: object) -> list[str]:
        assert run("batch", "threshold", tmp_path / "in", "-o", tmp_path / "out", "--resume", "--json", *words) == 0
        cases = json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]
        return [case["case"] for case in cases if case["resumed"]]

    assert resumed() == []
    table = (tmp_path / "out" / "threshold.csv").read_bytes()
    (tmp_path / "out" / "b" / "bright.seg.nrrd").unlink()
    shutil.rmtree(tmp_path / "out" / "c")
    (tmp_path / "out" / "d" / "provenance.json").write_text("{")
    assert resumed() == ["a"]
    assert (tmp_path / "out" / "threshold.csv").read_bytes() == table
    assert resumed() == ["a", "b", "c", "d"]
    for name, content in (("a", b""), ("b", b"name;volume_mm3\n1;9\n"), ("c", b"\xff")):  # as Excel saves it
        (tmp_path / "out" / name / "bright.csv").write_bytes(content)
    assert resumed() == ["d"]
    assert (tmp_path / "out" / "threshold.csv").read_bytes() == table
    assert (tmp_path / "out" / "b" / "kept-1-bright.csv").read_bytes() == b"name;volume_mm3\n1;9\n"
    assert resumed("--seed", 1) == []
    scan = read_volume(tmp_path / "in" / "a.nrrd")
    write_volume(scan.with_voxels(scan.voxels + 1), tmp_path / "in" / "a.nrrd")
    assert resumed("--seed", 1) == ["b", "c", "d"]
    monkeypatch.setattr("GenSegLogic.provenance.__version__", "99")
    assert resumed("--seed", 1) == []


def test_resume_knows_a_bundle_that_was_given_by_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_scan(tmp_path / "in", "a.nrrd")
    write_sample(tmp_path / "my-model", name="another-name")

    def resumed() -> bool:
        assert run("batch", "threshold", tmp_path / "in", "-o", tmp_path / "out", "--resume", "--json",
                   "--bundle", tmp_path / "my-model") == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["cases"][0]["resumed"]

    assert [resumed(), resumed()] == [False, True]
    write_sample(tmp_path / "my-model", seed=1, name="another-name")
    assert [resumed(), resumed()] == [False, True]
    shutil.rmtree(tmp_path / "my-model")
    with pytest.raises(AssertionError):  # done anew, for which the bundle is needed
        resumed()


def test_masks_come_from_a_folder_by_the_cases_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        save_scan(tmp_path / "in", f"{name}.nrrd")
    save_scan(tmp_path / "masks", "a.nii.gz")
    code = run("batch", "threshold", tmp_path / "in", "-o", tmp_path / "out", "--mask", tmp_path / "masks")
    table = rows(tmp_path / "out" / "threshold.csv")
    assert code == 1
    assert [row["case"] for row in table] == ["a", "a", "b"]
    assert "masks" in table[2]["error"] and "does not exist" in table[2]["error"]
    assert "1 of 2 cases failed (b)" in capsys.readouterr().err
    shutil.move(tmp_path / "masks", tmp_path / "in" / "masks")
    inside = {"mask": tmp_path / "in" / "masks"}
    assert [case.name for case in cohort.find_cases(tmp_path / "in", inside)] == ["a", "b"]


def test_what_is_in_the_tables_way_is_kept_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_scan(tmp_path / "in", "a.nrrd")
    out = tmp_path / "out"
    (out / "threshold.csv" / "mine").mkdir(parents=True)
    (out / "cases.csv").write_text("years of work")
    (out / "a").mkdir()
    (out / "a" / "bright.csv").write_text("mine")
    assert run("batch", "threshold", tmp_path / "in", "-o", out) == 0
    assert (out / "kept-1-threshold.csv" / "mine").is_dir()
    assert (out / "kept-1-cases.csv").read_text() == "years of work"
    said = capsys.readouterr().out
    for name in ("a/bright.csv", "cases.csv", "threshold.csv"):
        assert f"{out / name} was not as GenSeg had written it: it is kept as kept-1-{Path(name).name}." in said
    assert run("batch", "threshold", tmp_path / "in", "-o", out) == 0  # its own tables are replaced
    assert sorted(path.name for path in out.iterdir()) == [
        "a", "cases.csv", "kept-1-cases.csv", "kept-1-threshold.csv", "provenance.json", "threshold.csv"]


@pytest.mark.parametrize("name", ["threshold.csv", "Cases.CSV", "provenance.json"])
def test_a_case_that_is_called_like_a_table_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    save_scan(tmp_path / "in" / name)
    assert run("batch", "threshold", tmp_path / "in", "-o", tmp_path / "out") == 1
    assert capsys.readouterr().err == (f"genseg: {tmp_path / 'in' / name / 'scan.nrrd'} makes a case called {name}, "
                                       "which is the name of a table of all cases: rename it.\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", [".", "b", "results/deep"])
def test_results_inside_the_input_are_no_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """Whether they lie beside the scans, in a case's folder or in one of their own, and with notes of the user's."""
    scans = tmp_path / "in"
    save_scan(scans, "a.nrrd")
    save_scan(scans / "b", "ct.nii.gz")
    assert run("phantom", "cube", "-o", scans / "c") == 0
    out = scans / where

    def cases() -> dict[str, bool]:
        capsys.readouterr()
        assert run("batch", "threshold", scans, "-o", out, "--resume", "--json") == 0
        cases = json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]
        return {case["case"]: case["resumed"] for case in cases}

    wanted = ["a", "c"] if where == "b" else ["a", "b", "c"]  # an output that is a case's folder was never a case
    assert cases() == dict.fromkeys(wanted, False)
    (out / "a" / "notes.txt").write_text("mine")
    assert cases() == dict.fromkeys(wanted, True)
    elsewhere = [case.name for case in cohort.find_cases(scans, output=tmp_path / "elsewhere")]
    assert elsewhere == ["a", "b", "c"]


def test_headers_with_their_voxels_beside_them_are_cases_and_loose_dicom_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = SimpleITK.ReadImage(str(save_scan(tmp_path)))
    scans = tmp_path / "in"
    scans.mkdir()
    SimpleITK.WriteImage(image, str(scans / "a.nhdr"))
    SimpleITK.WriteImage(image, str(scans / "b.hdr"))
    SimpleITK.WriteImage(image[:, :, 3], str(scans / "c.dcm"))
    assert run("batch", "threshold", scans, "-o", tmp_path / "out", "--json") == 0
    said = capsys.readouterr().out.splitlines()
    assert [case["case"] for case in json.loads(said[-1])["cases"]] == ["a", "b"]
    assert said[0] == f"Left out: {scans / 'c.dcm'}, for the DICOM files of every case must lie in a sub-folder."


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="every file name there is Unicode")
def test_a_case_whose_name_is_no_unicode_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_scan(tmp_path / "in", "a.nrrd").rename(tmp_path / "in" / "b\udcffd.nrrd")
    save_scan(tmp_path / "in", "c.nrrd")
    assert run("batch", "threshold", tmp_path / "in", "-o", tmp_path / "out", "--json") == 1
    assert [bool(row["error"]) for row in rows(tmp_path / "out" / "cases.csv")] == [True, False]
    assert "not UTF-8" in rows(tmp_path / "out" / "cases.csv")[0]["error"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == ["b\udcffd"]


def test_a_gpu_that_is_not_there_is_said_once(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("batch", "threshold", scans, "-o", tmp_path / "out", "--device", "cuda:63") == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert not (tmp_path / "out").exists()


def test_the_output_may_be_called_like_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_scan(tmp_path / "in", "a.nrrd")
    assert run("batch", "-o", "organs", "threshold", "in", "--threshold", 350) == 0
    assert len(rows(tmp_path / "organs" / "threshold.csv")) == 1


def test_workers_share_the_memory_that_was_free_before_them() -> None:
    [(device, half)] = cohort._shares_of_memory("cpu", 2).items()
    assert device == "cpu" and half == pytest.approx(memory.free_bytes(torch.device("cpu")) / 2, rel=0.2)


@pytest.mark.skipif(os.name == "nt", reason="on Windows a process cannot send another one Ctrl-C")
def test_ctrl_c_in_a_terminal_reaches_every_process_and_ends_in_one_word(tmp_path: Path) -> None:
    for name in ("a.nrrd", "b.nrrd", "c.nrrd"):
        save_scan(tmp_path / "in", name)
    started = tmp_path / "started"
    with start("batch", "threshold", tmp_path / "in", "-o", tmp_path / "out", "--workers", "2", "--pause", "1",
               "--started", started, start_new_session=True) as process:
        wait_for(started, process)
        os.killpg(process.pid, signal.SIGINT)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert (process.returncode, out, err) == (1, "", "genseg: Cancelled.\n")
    assert not (tmp_path / "out").exists()


def test_a_ray_cluster_gives_the_same_table(scans: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the optional extra ray is not installed")
    work = cohort.Cohort(ThresholdTask(), tmp_path / "ray", "cpu")
    here = cohort.Cohort(ThresholdTask(), tmp_path / "here", "cpu")
    cases = cohort.find_cases(scans)
    on_ray = sorted(cohort.run_cohort(work, cases, ray_address="local"), key=lambda outcome: outcome.case)
    assert cohort.table(on_ray) == cohort.table(list(cohort.run_cohort(here, cases)))
    assert (tmp_path / "ray" / "a" / "overlay.png").is_file()


def test_without_ray_one_sentence_says_what_to_do(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, cases = cohort.Cohort(ThresholdTask(), tmp_path / "out"), cohort.find_cases(scans)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(GenSegError, match=r'pip install "GenSegLogic\[ray\]"'):
        list(cohort.run_cohort(work, cases, ray_address="auto"))
