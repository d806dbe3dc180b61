"""Importing bundles and published checkpoints without a network, removing them, and `genseg bundles`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from GenSegLogic import networks
from GenSegLogic.bundles import Bundle, find_bundle, folders, install, load_bundle
from GenSegLogic.bundles.install import cached_folders, import_bundle, import_published, remove
from GenSegLogic.cli import main
from GenSegLogic.errors import GenSegError
from GenSegLogic.networks.tinyvit import LITEMEDSAM
from Testing.logic.bundle_samples import write_sample


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("GENSEG_HOME", str(folder))
    return folder


@pytest.fixture
def sample(tmp_path: Path) -> Bundle:
    return write_sample(tmp_path / "carried" / "sample-net")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle that ships: the package is made to lie in a checkout of the test's own."""
    monkeypatch.setattr(folders, "_PACKAGE", tmp_path / "checkout" / "GenSegLogic")
    return write_sample(tmp_path / "checkout" / "Resources" / "Bundles" / "shipped-net")


def zip_folder(folder: Path, file: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, prefix + path.relative_to(folder).as_posix())
    return file


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# Bundles


def test_import_from_a_folder_takes_only_what_is_listed(sample: Bundle, cache: Path) -> None:
    (sample.folder / "notes.txt").write_text("patient names")
    imported = import_bundle(sample.folder)
    assert imported.folder == cache / "bundles" / "sample-net"
    assert imported.digest == sample.digest
    assert not (imported.folder / "notes.txt").exists()
    assert find_bundle("sample-net").folder == imported.folder
    image = torch.randn(1, 1, 32, 32)
    before, after = (load_bundle(bundle).networks["predictor"](image) for bundle in (sample, imported))
    assert torch.equal(before, after)


@pytest.mark.parametrize("prefix", ["", "sample-net/", "any name/"])
def test_import_from_a_zip(sample: Bundle, cache: Path, tmp_path: Path, prefix: str) -> None:
    imported = import_bundle(zip_folder(sample.folder, tmp_path / "bundle.zip", prefix))
    imported.verify()
    assert imported.digest == sample.digest
    assert contents(cache / "bundles") == ["sample-net"]


def test_import_replaces_the_bundle_of_that_name(sample: Bundle, cache: Path) -> None:
    import_bundle(sample.folder)
    other = write_sample(sample.folder, seed=1)
    assert import_bundle(other.folder).digest == other.digest
    assert contents(cache / "bundles") == ["sample-net"]


def test_a_damaged_bundle_is_not_imported(sample: Bundle, cache: Path, tmp_path: Path) -> None:
    weights = sample.folder / "models" / "predictor.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    for source in (sample.folder, zip_folder(sample.folder, tmp_path / "bundle.zip")):
        with pytest.raises(GenSegError, match=r"predictor\.safetensors is damaged.*; get the bundle sample-net again"):
            import_bundle(source)
    weights.unlink()
    for source in (sample.folder, zip_folder(sample.folder, tmp_path / "bundle.zip")):
        with pytest.raises(GenSegError, match=r"predictor\.safetensors.*not complete"):
            import_bundle(source)
    assert contents(cache / "bundles") == []


def test_a_failed_import_keeps_the_bundle_that_was_there(sample: Bundle, cache: Path) -> None:
    kept = import_bundle(sample.folder)
    (sample.folder / "LICENSE").write_text("other")
    with pytest.raises(GenSegError, match="LICENSE"):
        import_bundle(sample.folder)
    find_bundle("sample-net").verify()
    assert find_bundle("sample-net").digest == kept.digest


@pytest.mark.parametrize("evil", ["../evil.txt", "sample-net/../../evil.txt", "/evil.txt", "C:/evil.txt"])
def test_a_zip_that_points_outside_is_refused(sample: Bundle, cache: Path, tmp_path: Path, evil: str) -> None:
    file = zip_folder(sample.folder, tmp_path / "bundle.zip", "sample-net/")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(evil, "harm")
    with pytest.raises(GenSegError, match="points outside; nothing was imported"):
        import_bundle(file)
    assert contents(cache / "bundles") == []
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_zip_with_a_link_is_refused(sample: Bundle, cache: Path, tmp_path: Path) -> None:
    file = zip_folder(sample.folder, tmp_path / "bundle.zip")
    link = zipfile.ZipInfo("models/more.safetensors")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(GenSegError, match="points outside"):
        import_bundle(file)
    assert contents(cache / "bundles") == []


def test_a_zip_bomb_is_stopped_by_what_comes_out(
    sample: Bundle, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sample.folder / "models" / "predictor.safetensors").write_bytes(bytes(50 << 20))
    file = zip_folder(sample.folder, tmp_path / "bundle.zip")
    assert file.stat().st_size < 1 << 20
    monkeypatch.setattr(install, "MAXIMUM_BUNDLE_BYTES", 10 << 20)
    with pytest.raises(GenSegError, match="larger than a bundle may be"):
        import_bundle(file)
    assert contents(cache / "bundles") == []


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "two bundles", "no bundle"])
def test_a_zip_that_is_none(sample: Bundle, cache: Path, tmp_path: Path, kind: str) -> None:
    file = zip_folder(sample.folder, tmp_path / "bundle.zip", "first/")
    whole = file.read_bytes()
    if kind == "two bundles":
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("second/configs/metadata.json", "{}")
    elif kind == "no bundle":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("readme.txt", "hello")
    else:
        file.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2]}[kind])
    with pytest.raises(GenSegError, match=r"bundle\.zip (is no zip file|must hold one bundle)"):
        import_bundle(file)
    assert contents(cache / "bundles") == []


def test_no_flipped_byte_of_a_zip_gets_in(sample: Bundle, cache: Path, tmp_path: Path) -> None:
    file = zip_folder(sample.folder, tmp_path / "bundle.zip")
    whole = file.read_bytes()
    refused = 0
    for position in range(0, len(whole), max(1, len(whole) // 150)):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        file.write_bytes(changed)
        try:
            assert import_bundle(file).digest == sample.digest  # a byte that says nothing, such as a date
        except GenSegError as error:
            assert str(file) in str(error)
            assert str(cache) not in str(error)
            refused += 1
    assert refused > 100


def test_an_encrypted_or_oddly_packed_zip_is_refused(sample: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "bundle.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.write(sample.folder / "configs/metadata.json", "configs/metadata.json")
    with pytest.raises(GenSegError, match="not compressed as usual"):
        import_bundle(file)
    zip_folder(sample.folder, file)
    content = bytearray(file.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag that says encrypted, in every header
        start = content.find(signature)
        while start >= 0:
            content[start + offset] |= 1
            start = content.find(signature, start + 4)
    file.write_bytes(content)
    with pytest.raises(GenSegError, match=r"no zip file that can be read: .*encrypted"):
        import_bundle(file)


def test_a_shipped_bundle_cannot_be_hidden_or_removed(shipped: Bundle, tmp_path: Path, cache: Path) -> None:
    impostor = write_sample(tmp_path / "carried" / "shipped-net", seed=1)
    with pytest.raises(GenSegError, match="shipped-net ships with GenSeg"):
        import_bundle(impostor.folder)
    with pytest.raises(GenSegError, match="ships with GenSeg and cannot be removed"):
        remove("shipped-net")
    assert find_bundle("shipped-net").digest == shipped.digest
    assert contents(cache / "bundles") == []


# Published checkpoints


def litemedsam(file: Path) -> torch.nn.Module:
    """Write LiteMedSAM's image encoder with random weights in the published form; returns the encoder."""
    encoder = networks.build("tinyvit", LITEMEDSAM).eval()
    torch.save({f"image_encoder.{name}": value for name, value in encoder.state_dict().items()}, file)
    return encoder


@pytest.mark.parametrize("how", ["file", "folder", "kind"])
def test_import_of_a_published_checkpoint(tmp_path: Path, cache: Path, how: str) -> None:
    file = tmp_path / "from usb" / ("renamed.pth" if how == "kind" else "lite_medsam.pth")
    file.parent.mkdir()
    encoder = litemedsam(file)
    path = file.parent if how == "folder" else file
    bundle, messages = import_published([path], "litemedsam-tinyvit" if how == "kind" else None)
    assert bundle.folder == cache / "bundles" / "litemedsam-tinyvit"
    assert messages == [f"{file} was not checked, for the registry has no SHA-256 of it."]
    imported = load_bundle(bundle).networks["encoder"].state_dict()
    assert imported.keys() == encoder.state_dict().keys()
    assert all(torch.equal(imported[name], value) for name, value in encoder.state_dict().items())


def test_checkpoints_that_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"x")
    (tmp_path / "autoencoder_v1.pt").write_bytes(b"x")
    with pytest.raises(GenSegError, match="neither a bundle nor published weights"):
        import_published([tmp_path / "a.pt"])
    with pytest.raises(GenSegError, match=r"lacks diff_unet_3d_rflow-ct\.pt among the files given"):
        import_published([tmp_path / "autoencoder_v1.pt"], "maisi-rflow-ct")
    with pytest.raises(GenSegError, match="does not exist"):
        import_published([tmp_path / "b.pt"])
    with pytest.raises(GenSegError, match="known are maisi-rflow-ct"):
        import_published([tmp_path / "a.pt"], "maisi")


def test_a_checkpoint_that_is_not_what_its_name_says(tmp_path: Path, cache: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "lite_medsam.pth")
    with pytest.raises(GenSegError, match=r"lite_medsam\.pth"):
        import_published([tmp_path])
    assert contents(cache / "bundles") == []


# Removing


def test_remove_touches_only_what_is_ours(sample: Bundle, cache: Path) -> None:
    import_bundle(sample.folder)
    fetched = cache / "fetched" / "maisi-rflow-ct"
    leftover = cache / "bundles" / ".0123abcd"
    others = [cache / "bundles" / "my thesis", cache / "fetched" / "photos", cache / "letters"]
    for folder in (fetched, leftover, *others):
        folder.mkdir(parents=True)
        (folder / "content").write_bytes(bytes(1000))
    assert set(cached_folders()) == {cache / "bundles" / "sample-net", leftover, fetched}
    ((folder, size),) = remove("maisi-rflow-ct")
    assert (folder, size) == (fetched, 1000)
    assert main(["bundles", "remove", "--all"]) == 0
    assert cached_folders() == []
    assert all((folder / "content").exists() for folder in others)


@pytest.mark.parametrize("name", ["..", ".", "", "../letters", "/", "my thesis"])
def test_remove_refuses_other_names(cache: Path, name: str) -> None:
    for folder in (cache / "bundles" / "my thesis", cache / "letters"):
        folder.mkdir(parents=True)
    with pytest.raises(GenSegError, match="Nothing called"):
        remove(name)
    assert (cache / "bundles" / "my thesis").exists()
    assert (cache / "letters").exists()


def test_remove_does_not_follow_a_link(sample: Bundle, cache: Path) -> None:
    (cache / "bundles").mkdir(parents=True)
    try:
        (cache / "bundles" / "sample-net").symlink_to(sample.folder, target_is_directory=True)
    except OSError:
        pytest.skip("this account may not make links")
    with pytest.raises(GenSegError, match="Nothing called"):
        remove("sample-net")
    sample.verify()


# The command, as a process and in this one


def genseg(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "GenSegLogic.cli", "bundles", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ.copy(), check=False)


def test_a_bundles_life_on_the_command_line(sample: Bundle, cache: Path, tmp_path: Path) -> None:
    file = zip_folder(sample.folder, tmp_path / "bundle.zip")
    imported = genseg("import", file, "--json")
    assert imported.returncode == 0, imported.stderr
    assert json.loads(imported.stdout.splitlines()[-1])["digest"] == sample.digest
    listed = json.loads(genseg("list", "--json", "--quiet").stdout)
    (row,) = [row for row in listed["bundles"] if row["name"] == "sample-net"]
    assert row["ships"] is False
    assert row["commercial_use"] is True
    assert listed["cache_folder"] == str(cache)
    assert listed["cache_bytes"] == row["bytes"] > 0
    shown = genseg("show", "sample-net").stdout
    assert "window_hu: [-1000, 400]" in shown
    assert sample.digest in shown
    removed = genseg("remove", "sample-net")
    assert removed.returncode == 0
    assert str(cache / "bundles" / "sample-net") in removed.stdout
    gone = genseg("show", "sample-net")
    assert (gone.returncode, gone.stdout, gone.stderr.count("\n")) == (1, "", 1)


def test_verify_names_every_damaged_file_and_fails(sample: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    folder = import_bundle(sample.folder).folder
    assert main(["bundles", "verify", "sample-net"]) == 0
    assert "sample-net: all 5 files are intact." in capsys.readouterr().out
    (folder / "LICENSE").write_text("changed")
    assert main(["bundles", "verify", "--json"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (row,) = [row for row in result["bundles"] if row["name"] == "sample-net"]
    assert row["intact"] is False
    assert str(folder / "LICENSE") in row["problem"]
    shutil.rmtree(folder / "configs")
    (folder / "configs").mkdir()
    (folder / "configs" / "metadata.json").write_text("{}")
    assert main(["bundles", "verify"]) == 1
    assert "metadata.json lacks version" in capsys.readouterr().out


def test_import_command_tells_bundles_from_checkpoints(
    sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    litemedsam(tmp_path / "lite_medsam.pth")
    assert main(["bundles", "import", str(sample.folder)]) == 0
    assert main(["bundles", "import", str(tmp_path / "lite_medsam.pth")]) == 0
    assert find_bundle("sample-net").kind == "predictor"
    assert find_bundle("litemedsam-tinyvit").kind == "encoder"
    assert "commercial use not allowed" in (main(["bundles", "show", "litemedsam-tinyvit"]), capsys.readouterr().out)[1]


@pytest.mark.parametrize("words", [["remove"], ["remove", "--all", "x"], [], ["fetch"], ["import"], ["rename", "x"]])
def test_wrong_use_is_exit_code_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["bundles", *words])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert capsys.readouterr().err
