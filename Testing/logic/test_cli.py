"""The command line: options made from tasks, exit codes, one line on standard error, the JSON line, cancelling."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from GenSegLogic import cli, read_volume
from GenSegLogic.commands import evaluate
from GenSegLogic.commands.options import join_negative_values
from GenSegLogic.results import Code, Segment, Segmentation
from GenSegLogic.tasks import TASKS
from Testing.logic.genseg_process import ROOT, start, wait_for
from Testing.logic.threshold_task import TARGET, bright_scan, save_scan


@pytest.fixture(autouse=True)
def threshold_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "threshold", TARGET)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save_scan(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str], list[str]]:
    """Exit code, lines of standard output, lines of standard error."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


# Running a task


def test_a_task_runs_from_file_to_files(capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path) -> None:
    code, out, err = run(capsys, "threshold", scan, "-o", tmp_path / "out", "--device", "cpu")
    assert (code, err) == (0, [])
    assert out[0] == "2 bright spots."
    assert str(tmp_path / "out" / "bright.seg.nrrd") in "\n".join(out)
    labels = read_volume(tmp_path / "out" / "bright.seg.nrrd")
    assert np.array_equal(labels.voxels > 0, bright_scan().voxels > 100)
    assert (tmp_path / "out" / "overlay.png").stat().st_size > 10_000


def test_the_json_line_is_the_last_and_names_files_and_rows(
    capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path
) -> None:
    code, out, err = run(capsys, "threshold", scan, "-o", tmp_path / "out", "--json")
    result = json.loads(out[-1])
    assert (code, err) == (0, [])
    assert result["summary"] == "2 bright spots."
    assert [row["name"] for row in result["rows"]] == ["Bright 1", "Bright 2"]
    assert all(Path(path).is_file() for path in result["files"].values())
    assert Path(result["directory"]) == tmp_path / "out"


def test_quiet_prints_nothing_but_the_json_line(capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path) -> None:
    assert run(capsys, "threshold", scan, "-o", tmp_path / "a", "--quiet") == (0, [], [])
    code, out, err = run(capsys, "threshold", scan, "-o", tmp_path / "b", "--quiet", "--json")
    assert (code, len(out), err) == (0, 1, [])


def test_every_parameter_reaches_the_task(capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path) -> None:
    code, _, _ = run(capsys, "threshold", scan, "-o", tmp_path / "out", "--threshold", "-900", "--noise=2.5",
                     "--window", 32, "--mode", "below", "--names", "one, two", "--smooth", "--seed", 7)
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert code == 0
    assert record["parameters"] == {"threshold": -900.0, "noise": 2.5, "window": 32, "mode": "below", "bundle": "",
                                    "smooth": True, "names": ["one", "two"], "seed": 7, "seed_points": [],
                                    "started": "", "pause": 0.0}


def test_a_mask_is_an_input(capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "threshold", scan, "-o", tmp_path / "out", "--mask", scan)
    assert (code, out[0]) == (0, "2 bright spots.")
    code, out, err = run(capsys, "threshold", scan, "-o", tmp_path / "out", "--mask", tmp_path / "none.nrrd")
    assert (code, out, len(err)) == (1, [], 1)
    assert "none.nrrd does not exist" in err[0]


@pytest.mark.parametrize("form", [["--seed-point", "{}"], ["--seed-point={}"]])
@pytest.mark.parametrize("frame", ["lps", "ras"])
def test_points_with_a_negative_first_number_in_both_frames(
    capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path, form: list[str], frame: str
) -> None:
    image = read_volume(scan)
    points = image.to_lps(np.array([[6.0, 5.0, 3.0], [17.0, 13.0, 8.0]]))
    assert (points[:, 0] < 0).all()
    sign = np.array([-1, -1, 1]) if frame == "ras" else np.ones(3)
    given = [",".join(f"{number:.3f}" for number in point * sign) for point in points]
    words = [part.format(text) for text in given for part in form]
    code, out, err = run(capsys, "threshold", scan, "-o", tmp_path / "out", *words,
                         *(["--ras"] if frame == "ras" else []))
    assert (code, out[0], err) == (0, "2 bright spots.", [])
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert np.allclose(record["parameters"]["seed_points"], points, atol=1e-3)


def test_only_values_of_options_are_joined() -> None:
    assert join_negative_values(["--a", "-1,2,3", "-o", "x", "--b", "-.5", "--c=1", "-2", "--q", "-o"]) == [
        "--a=-1,2,3", "-o", "x", "--b=-.5", "--c=1", "-2", "--q", "-o"]


# Wrong use: 2


@pytest.mark.parametrize("words", [
    [], ["frobnicate"], ["threshold"], ["threshold", "SCAN"], ["threshold", "SCAN", "-o", "OUT", "--steps", "3"],
    ["threshold", "SCAN", "-o", "OUT", "--window", "many"], ["threshold", "SCAN", "-o", "OUT", "--seed-point", "1,2"],
    ["threshold", "SCAN", "-o", "OUT", "--seed-point", "nan,1,2"],
    ["threshold", "SCAN", "-o", "OUT", "--seed-point", "1,2,-1e999"],
    ["threshold", "SCAN", "-o", "OUT", "--thresh", "3"], ["batch", "nothing", "IN", "-o", "OUT"],
    ["batch", "threshold", "IN", "-o", "OUT", "--workers", "0"], ["train", "nothing"], ["evaluate", "nothing"],
    ["threshold", "SCAN", "-o", "OUT", "--device", "gpu"], ["phantom", "nothing", "-o", "OUT"],
    ["phantom", "chest", "-o", "OUT", "--seed", "2147483648"],
    ["phantom", "chest", "-o", "OUT", "--seed", "\N{SUPERSCRIPT TWO}"]])
def test_wrong_use_is_2_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path, words: list[str]
) -> None:
    places = {"SCAN": scan, "OUT": tmp_path / "out", "IN": tmp_path}
    code, out, err = run(capsys, *(places.get(word, word) for word in words))
    assert (code, out) == (2, [])
    assert "error: " in err[-1] and not any("Traceback" in line for line in err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "value", "sentence"), [
    ("--window", "8", "threshold: window is 8, but must be between 16 and 128."),
    ("--noise", "-1", "threshold: noise is -1.0, but must be at least 0."),
    ("--noise", "nan", "threshold: noise is nan, but must be at least 0."),
    ("--mode", "beside", "threshold: mode is 'beside', but must be one of above, below."),
    ("--seed", "-3", "threshold: seed is -3, but must be between 0 and 2147483647."),
    ("--seed", "99999999999999999999999",
     "threshold: seed is 99999999999999999999999, but must be between 0 and 2147483647.")])
def test_a_value_out_of_range_is_2_with_the_range(
    capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path, option: str, value: str, sentence: str
) -> None:
    code, out, err = run(capsys, "threshold", scan, "-o", tmp_path / "out", option, value)
    assert (code, out, err) == (2, [], [f"genseg: {sentence}"])


def test_help_shows_what_the_task_says(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "threshold", "--help")
    text = " ".join(" ".join(out).split())
    assert code == 0
    assert "--window N Edge of the window. (16 to 128; default 64)" in text
    assert "50 % of the contrast" in text and "--seed-point L,P,S" in text and "--no-smooth" in text
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in (*TASKS, *cli.COMMANDS):
        assert any(line.split()[:1] == [command] for line in out), command


def test_values_that_are_no_numbers_of_labels_are_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "adapt", "organs", "--image", "scan", "--labels", "labels", "-o", tmp_path / "mine",
                         "--numbers", "\N{SUPERSCRIPT TWO}=liver")
    assert (code, out, len(err)) == (2, [], 1)
    assert "does not say what label values stand for" in err[0]


# Failures: 1


def test_a_scan_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "threshold", tmp_path / "no.nrrd", "-o", tmp_path / "out")
    assert (code, out, len(err)) == (1, [], 1)
    assert err[0].startswith("genseg: ") and "no.nrrd does not exist" in err[0]
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_said_before_the_work(
    capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    code, _, err = run(capsys, "threshold", scan, "-o", tmp_path / "out")
    assert (code, err) == (1, [f"genseg: {tmp_path / 'out'} is a file, not a folder: choose another folder for the "
                               "results."])


def test_an_output_below_a_file_is_said_before_the_work(
    capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path
) -> None:
    out = scan / "deep" / "out"
    code, _, err = run(capsys, "threshold", tmp_path / "no scan is read.nrrd", "-o", out)
    assert (code, err) == (1, [f"genseg: {out} cannot be made, for {scan} is a file: choose another folder for the "
                               "results."])


@pytest.mark.parametrize("to", ["nowhere/deep", "out"])
@pytest.mark.parametrize("below", ["", "deep"])
def test_an_output_that_is_a_link_to_nowhere_is_said_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, to: str, below: str
) -> None:
    (tmp_path / "out").symlink_to(tmp_path / to)
    code, _, err = run(capsys, "threshold", tmp_path / "no scan is read.nrrd", "-o", tmp_path / "out" / below)
    assert (code, err) == (1, [f"genseg: {tmp_path / 'out'} is a link to a place that is not there: choose another "
                               "folder for the results."])


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="every file name there is Unicode")
def test_an_output_whose_name_is_no_unicode_is_said_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(capsys, "threshold", tmp_path / "no scan is read.nrrd", "-o", tmp_path / "b\udcffd")
    assert (code, err) == (1, [f"genseg: {tmp_path}/b\\udcffd is not UTF-8: choose another folder for the results."])


@pytest.mark.parametrize("option", [None, "--mask"])
def test_an_input_that_its_results_would_replace_is_refused(
    capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path, option: str | None
) -> None:
    out = tmp_path / "out"
    assert run(capsys, "threshold", scan, "-o", out)[0] == 0
    result = out / "filtered.nrrd"
    before = result.read_bytes()
    words = [result] if option is None else [scan, option, result]
    code, _, err = run(capsys, "threshold", *words, "-o", out)
    assert (code, err) == (1, [f"genseg: {result} is a result of an earlier threshold, which the new ones would "
                               "replace: choose another folder for the results."])
    assert result.read_bytes() == before
    assert run(capsys, "threshold", *words, "-o", tmp_path / "other")[0] == 0


def test_a_cache_folder_of_nobody(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSEG_HOME", "~nobody-of-that-name/x")
    code, _, err = run(capsys, "bundles", "list")
    assert (code, len(err)) == (1, 1)
    assert err[0].startswith("genseg: GENSEG_HOME is '~nobody-of-that-name/x', which is no folder")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc takes no folders, not even from root")
def test_an_output_that_cannot_be_written_is_said_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(capsys, "threshold", tmp_path / "no scan is read.nrrd", "-o", "/proc/results")
    assert (code, len(err)) == (1, 1)
    assert err[0].startswith("genseg: /proc cannot be written to (") and err[0].endswith("folder for the results.")


def test_a_benchmarks_folder_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "evaluate", "luna16", "--root", tmp_path / "nope")
    assert (code, err) == (1, [f"genseg: {tmp_path / 'nope'} is not a folder; give the one into which LUNA16 was "
                               "unpacked."])


def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path) -> None:
    code, out, err = run(capsys, "threshold", scan, "-o", tmp_path / "out", "--device", "cuda:63")
    assert (code, out, len(err)) == (1, [], 1)
    assert "choose --device cpu or auto" in err[0]


def test_a_failing_task_ends_in_its_sentence_and_a_defect_in_ours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(capsys, "threshold", save_scan(tmp_path, "empty.nrrd"), "-o", tmp_path / "out", "--json")
    assert (code, out, err) == (1, [], ["genseg: empty.nrrd shows no body; choose another scan."])
    code, out, err = run(capsys, "threshold", save_scan(tmp_path, "crash.nrrd"), "-o", tmp_path / "out")
    assert (code, out, len(err)) == (1, [], 1)
    assert err[0].startswith("genseg: This is a defect in GenSeg (ZeroDivisionError: a defect)")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("GENSEG_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["threshold", str(tmp_path / "crash.nrrd"), "-o", str(tmp_path / "out")])


# As a process


def test_as_a_process_nothing_reaches_standard_error(scan: Path, tmp_path: Path) -> None:
    with start("threshold", scan, "-o", tmp_path / "out", "--json") as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["summary"] == "2 bright spots."


def test_help_needs_no_heavy_library() -> None:
    code = ("import sys\nfrom GenSegLogic.cli import main\n"
            "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
            "print(sorted({'torch', 'monai', 'SimpleITK', 'matplotlib', 'scipy'} & set(sys.modules)))")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
                             env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(os.name == "nt", reason="on Windows a process cannot send another one Ctrl-C")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_ends_in_one_word_and_leaves_nothing(scan: Path, tmp_path: Path, number: str) -> None:
    started = tmp_path / "started"
    with start("threshold", scan, "-o", tmp_path / "out", "--pause", "60", "--started", started,
               preexec_fn=lambda: signal.signal(signal.Signals[number], signal.SIG_DFL)) as process:  # also under nohup
        wait_for(started, process)
        process.send_signal(signal.Signals[number])
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (1, "", "genseg: Cancelled.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.nrrd", "started"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
def test_under_nohup_a_closed_terminal_ends_nothing(scan: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    with start("threshold", scan, "-o", tmp_path / "out", "--pause", "0.2", "--started", started,
               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        wait_for(started, process)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 0 and (tmp_path / "out" / "bright.csv").is_file()


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no broken pipe")
def test_the_work_goes_on_where_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    for name in ("a.nrrd", "b.nrrd"):
        save_scan(tmp_path / "in", name)
    with start("batch", "threshold", tmp_path / "in", "-o", tmp_path / "out", "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0 and (tmp_path / "out" / "cases.csv").is_file()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_the_work_goes_on_where_the_terminal_is_gone(scan: Path, tmp_path: Path) -> None:
    """As after bash's disown."""
    ours, its = os.openpty()
    started = tmp_path / "started"
    with start("threshold", scan, "-o", tmp_path / "out", "--pause", "0.2", "--started", started, stdout=its,
               stderr=its, start_new_session=True) as process:
        os.close(its)
        wait_for(started, process)
        os.close(ours)
    assert process.returncode == 0 and (tmp_path / "out" / "bright.csv").is_file()


# Commands that dispatch further


def small_phantom(seed: int, radius: int, count: int) -> dict[str, Any]:
    """A cube as a phantom."""
    image = bright_scan("image")
    truth = image.with_voxels((image.voxels > 100).astype(np.uint8) * count * radius, "truth")
    code = Code("SCT", "27925004", "Nodule")
    return {"image": image.with_voxels(image.voxels + seed),
            "truth": Segmentation(truth, (Segment(count, "Cube", (1, 0, 0), code, code),))}


def small_benchmark(arguments: dict[str, Any], progress: Any) -> dict[str, Any]:
    """What a benchmark returns."""
    progress(0.5, "half")
    rows = [{"method": "guided", "dice": 0.81234, "dice_ci": [0.7, 0.9], "n": arguments["count"]},
            {"method": "score-cam", "dice": float("nan"), "dice_ci": None, "n": 3}]
    return {"benchmark": "small", "rows": rows, "detection": {"sensitivity": 0.9}}


def small_recipe(output: Path, minutes: float, seed: int, progress: Any) -> None:
    """What a recipe does."""
    output.mkdir(parents=True)
    (output / "card.txt").write_text(f"{minutes} {seed}")


def add_arguments(parser: Any) -> None:
    """What a module of benchmarks or phantoms may add."""
    parser.add_argument("--radius", type=int, default=3)
    parser.add_argument("--count", type=int, default=60)


def test_a_phantom_is_saved_like_results_and_marked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from GenSegLogic.phantoms import KINDS

    monkeypatch.setitem(KINDS, "cube", f"{__name__}:small_phantom")
    code, out, err = run(capsys, "phantom", "cube", "-o", tmp_path, "--seed", 5, "--radius", 1, "--count", 9, "--json")
    assert (code, err) == (0, [])
    assert set(json.loads(out[-1])["files"]) == {"image.nrrd", "truth.seg.nrrd", "overlay.png", "provenance.json"}
    assert read_volume(tmp_path / "image.nrrd").voxels.min() == -795
    assert read_volume(tmp_path / "truth.seg.nrrd").voxels.max() == 9
    record = json.loads((tmp_path / "provenance.json").read_text())
    assert (record["phantom"], record["seed"], record["options"]["radius"]) == ("cube", 5, 1)
    assert record["synthetic"] == ["image.nrrd"]


def test_a_benchmark_prints_its_table_and_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from GenSegLogic.evaluation import BENCHMARKS

    monkeypatch.setitem(BENCHMARKS, "small", f"{__name__}:small_benchmark")
    code, out, err = run(capsys, "evaluate", "small", "--count", "12", "--json")
    assert (code, err) == (0, [])
    assert out[:4] == ["small", "  method      dice  dice_ci      n", "  guided     0.812  [0.7, 0.9]  12",
                       "  score-cam    nan               3"]
    assert out[4] == "detection: sensitivity 0.9"
    result = json.loads(out[-1])
    assert result["rows"][0]["n"] == 12 and result["rows"][1]["dice"] is None


def test_a_recipe_gets_its_folder_minutes_and_seed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from GenSegLogic.training.recipes import RECIPES

    monkeypatch.setitem(RECIPES, "small", f"{__name__}:small_recipe")
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "train", "small", "--minutes", "1.5", "--seed", "4")
    assert (code, err) == (0, [])
    assert (tmp_path / "bundles" / "small" / "card.txt").read_text() == "1.5 4"
    assert run(capsys, "train", "small", "--minutes", "0")[0] == 2


@pytest.mark.parametrize("words, sentence", [
    (["nodules-phantom", "--device", "gpu"], "--device: The device is 'gpu', but must be auto, cpu, cuda or cuda:N."),
    (["organs-few-shot", "--data", ".", "--minutes", "nan"], "--minutes: 'nan' is not a number above 0"),
    (["organs-few-shot", "--data", ".", "--unet-minutes", "0"], "--unet-minutes: '0.0' is not a number above 0"),
])
def test_a_benchmark_on_no_device_or_in_no_time_is_wrong_use(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    code, out, err = run(capsys, "evaluate", *words)
    assert (code, out, err) == (2, [], [f"genseg: argument {sentence}"])


def test_where_no_bundle_can_go_is_said_before_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from GenSegLogic.training.recipes import RECIPES

    monkeypatch.setitem(RECIPES, "small", f"{__name__}:small_recipe")
    code, _, err = run(capsys, "train", "small", "-o", tmp_path / "My Model")
    assert (code, err) == (1, ["genseg: 'My Model' cannot name a bundle: choose a folder named in lower-case letters, "
                               "digits and dashes, and not auto."])
    assert "'auto' cannot name a bundle" in run(capsys, "train", "small", "-o", tmp_path / "auto")[2][0]
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    code, _, err = run(capsys, "train", "small", "-o", thesis)
    assert (code, err) == (1, [f"genseg: {thesis} holds something other than a bundle: choose another folder."])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"] and len(list(thesis.iterdir())) == 1
    (thesis / "configs").mkdir()
    (thesis / "configs" / "metadata.json").write_text('{"version": "0.1", "monai_version": "1.3"}')
    code, _, err = run(capsys, "train", "small", "-o", thesis)  # a bundle of another program's is the user's
    assert (code, err) == (1, [f"genseg: {thesis} holds something other than a bundle: choose another folder."])


def test_tables_are_aligned() -> None:
    lines = evaluate.format_table([{"a": "x", "b": 1}, {"a": "long", "b": 22.5, "c": [1.0, 2.0]}])
    assert lines == ["a        b  c", "x        1", "long  22.5  [1, 2]"]


# The demo


@pytest.fixture
def demo_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own code around a task and a phantom that take no time."""
    from GenSegLogic.phantoms import KINDS

    monkeypatch.setitem(TASKS, "nodules", TARGET)
    monkeypatch.setitem(KINDS, "chest", f"{__name__}:chest_phantom")


def chest_phantom(seed: int, radius: int, count: int) -> dict[str, Any]:
    """Two spots that the threshold finds, the second of them smaller than found, and one that it misses."""
    image = bright_scan("image")
    truth = np.where(image.voxels == 300, 4, 0).astype(np.uint8)
    truth[7:9, 12:15, 15:20] = 7
    truth[0, :2, :2] = 9
    code = Code("SCT", "27925004", "Nodule")
    segments = tuple(Segment(label, f"true & {label}", (1, 0, 0), code, code) for label in (4, 7, 9))
    return {"image": image, "nodules": Segmentation(image.with_voxels(truth, "truth"), segments)}


def test_the_demo_writes_a_page_that_needs_nothing_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, demo_parts: None
) -> None:
    code, out, err = run(capsys, "demo", "-o", tmp_path / "demo", "--json")
    assert (code, err) == (0, [])
    page = (tmp_path / "demo" / "demo.html").read_text(encoding="utf-8")
    assert str(tmp_path / "demo" / "demo.html") in out[-2] and "demo.html" in json.loads(out[-1])["files"]
    assert "http:" not in page and "https:" not in page and "src=\"data:image/png;base64," in page
    assert page.count('class="card"') == 2 and page.count(">SYNTHETIC<") == 2
    cells = [[cell.split("<")[0] for cell in row.split(">") if cell.split("<")[0].strip()]
             for row in page.split("<table>")[1].split("</table>")[0].split("</tr>")]
    assert [row[-3:] for row in cells if row][1:] == [
        ["true &amp; 4", "9.3", "1.00"], ["true &amp; 7", "6.9", "0.80"], ["true &amp; 9", "3.5", "0"]]
    assert cells[3][0] == "missed"
    assert (tmp_path / "demo" / "phantom" / "nodules.seg.nrrd").is_file()
    assert not list((tmp_path / "demo").glob(".*"))


def test_the_demo_keeps_a_page_of_the_users(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, demo_parts: None
) -> None:
    (tmp_path / "demo.html").write_text("mine")
    for _ in range(2):
        assert run(capsys, "demo", "-o", tmp_path)[0] == 0
    assert (tmp_path / "kept-1-demo.html").read_text() == "mine" and not (tmp_path / "kept-2-demo.html").exists()
    assert "<table>" in (tmp_path / "demo.html").read_text(encoding="utf-8")
    assert "demo.html" in json.loads((tmp_path / "provenance.json").read_text())["files"]


def test_the_demo_takes_a_scan_and_then_knows_no_truth(
    capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path, demo_parts: None
) -> None:
    code, _, err = run(capsys, "demo", scan, "-o", tmp_path / "demo", "--quiet")
    page = (tmp_path / "demo" / "demo.html").read_text(encoding="utf-8")
    assert (code, err) == (0, [])
    assert "Scan: scan.nrrd." in page and "the truth" not in page and "Dice" not in page
    assert not (tmp_path / "demo" / "phantom").exists()
