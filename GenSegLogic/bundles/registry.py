"""The registry of published weights: plain data in ``registry.json``, read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import GenSegError
from .bundle import read_json


@dataclass(frozen=True)
class PublishedFile:
    """One file of published weights.

    Attributes:
        role: what the importer calls it (``autoencoder``, ``velocity``, ``weights``).
        path: its path in the hub's repository.
        size_bytes, sha256: None where not known.
        optional: whether GenSeg does without it; it is then not fetched.
        about_megabytes: four bytes for every parameter of the architecture; None of files that are not used.
    """

    role: str
    path: str
    size_bytes: int | None
    sha256: str | None
    optional: bool
    about_megabytes: int | None = None

    @property
    def name(self) -> str:
        """The file's name without folders."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Published:
    """Weights that somebody has published.

    Attributes:
        name: the word that fetches them, and the name of the bundle they become.
        title: what people read.
        importer: kind for :func:`.importers.import_checkpoint`; None for files that are used as they are.
        hub: repository on the hub; None where the files can only be had by hand.
        revision: branch or commit on the hub.
        files: all files, the optional ones too.
        licence, licence_url: as far as known.
        commercial_use: None where the publisher does not say.
        by_hand: how to get the files without GenSeg, as the end of a sentence.
        remarks: what else a user should know.
    """

    name: str
    title: str
    importer: str | None
    hub: str | None
    revision: str | None
    files: tuple[PublishedFile, ...]
    licence: str
    licence_url: str
    commercial_use: bool | None
    by_hand: str
    remarks: str

    @property
    def needed(self) -> tuple[PublishedFile, ...]:
        """The files that GenSeg needs."""
        return tuple(file for file in self.files if not file.optional)

    @property
    def licence_sentence(self) -> str:
        """The licence and what it means for commercial use, for people."""
        use = {True: "commercial use allowed", False: "no commercial use", None: "commercial use not stated"}
        return f"{self.name}: {self.licence} ({use[self.commercial_use]}); see {self.licence_url}."


def read_registry() -> dict[str, Published]:
    """Name -> published weights, in the order of the file."""
    entries = read_json(Path(__file__).with_name("registry.json"))["weights"]
    weights = [Published(**{**entry, "files": tuple(PublishedFile(**file) for file in entry["files"])})
               for entry in entries]
    return {published.name: published for published in weights}


def find_published(name: str) -> Published:
    """The published weights of that name.

    Raises:
        GenSegError: if there are none, listing those that there are.
    """
    registry = read_registry()
    if name not in registry:
        raise GenSegError(f"No published weights are called {name!r}; known are {', '.join(registry)}.")
    return registry[name]
