"""Command-line options, made from what a task declares about its parameters and inputs."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import tempfile
import types
import typing
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ..bundles.bundle import is_name
from ..bundles.folders import AUTO, can_be_replaced
from ..errors import GenSegError
from ..task import LARGEST_SEED, Task, parameter_type


class WrongUse(GenSegError):
    """The command line makes no sense; the exit code is 2."""


Point = tuple[float, float, float]
Points = tuple[Point, ...]


_TAKES_ANY_WORD = ("-o", "--output", "--series", "--lungs", "--bundle", "--predictor", "--ray", "--root", "--data",
                   "--cache", "--sam2")


def asked_for(words: Sequence[str], names: Collection[str]) -> str | None:
    """The first of ``words`` among ``names`` that is no option's value (``-o organs``); None where there is none.

    What is named decides which further options there are, so it is looked for before anything is parsed.
    """
    before = ("", *words)
    return next((word for option, word in zip(before, words, strict=False)
                 if word in names and option not in _TAKES_ANY_WORD), None)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """``--quiet`` and ``--json``. :mod:`GenSegLogic.cli` adds them to every command; nested parsers add them again."""
    # SUPPRESS, so that the default of a nested parser does not overwrite what was given before its name.
    parser.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS,
                        help="print nothing but errors (and the JSON line)")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS,
                        help="print one JSON object as the last line of standard output")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--series``, for commands that run a task on a scan."""
    add_device_option(parser)
    parser.add_argument("--series", metavar="TEXT",
                        help="which series of a DICOM folder: its UID or number (default: the largest scan)")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", type=device, default="auto", metavar="auto|cpu|cuda[:n]",
                        help="where to compute (default auto)")


def add_directory_option(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """``-o DIR``, required unless there is a default."""
    note = f" (default {default})" if default else ""
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=default is None,
                        default=Path(default) if default else None, help=f"folder for the results{note}")


def device(text: str) -> str:
    """An argparse type: a device's word. Whether it is there is seen later."""
    from ..engine import Engine

    try:
        Engine(text)
    except GenSegError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def seed(text: str) -> int:
    """An argparse type: a whole number from 0 to LARGEST_SEED."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def positive(text: str) -> float:
    """An argparse type: a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def checked_directory(path: Path) -> Path:
    """``path``, if results can go there, as a folder that is there or can be made.

    Raises:
        GenSegError: if it is a file or below one, a link to nowhere, in a folder that nobody may write to, or has a
            name that is not UTF-8, which the libraries below cannot write to.
    """
    from ..volume.names import printable  # late, for it loads NumPy, which no help needs

    if printable(path.absolute()) != str(path.absolute()):
        raise GenSegError(f"{printable(path.absolute())} is not UTF-8: choose another folder for the results.")
    if path.exists() and not path.is_dir():
        raise GenSegError(f"{path} is a file, not a folder: choose another folder for the results.")
    nearest = path.absolute()
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.exists():
        raise GenSegError(f"{nearest} is a link to a place that is not there: choose another folder for the results.")
    if not nearest.is_dir():
        raise GenSegError(f"{path} cannot be made, for {nearest} is a file: choose another folder for the results.")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".genseg-", dir=nearest))
    except OSError as error:
        raise GenSegError(f"{nearest} cannot be written to ({error.strerror or error}): choose another folder for the "
                          "results.") from error
    return path


def check_inputs(paths: Sequence[Path], directory: Path, task: str) -> None:
    """Raise GenSegError if an input is a result of the same task in ``directory``, which the new results replace."""
    from ..provenance import records

    results = [directory / name for name in records(directory).get(task, {}).get("files", ())]
    for path in paths:
        if any(path.exists() and result.exists() and path.samefile(result) for result in results):
            raise GenSegError(f"{path} is a result of an earlier {task}, which the new ones would replace: choose "
                              "another folder for the results.")


def checked_bundle_folder(path: Path) -> Path:
    """``path``, absolute, if a bundle can go there. Said before minutes of learning.

    Raises:
        GenSegError: if its name cannot be a bundle's, or it is no folder, one of something else, or cannot be made.
    """
    path = checked_directory(path).absolute()
    if not is_name(path.name) or path.name == AUTO:
        raise GenSegError(f"{path.name!r} cannot name a bundle: choose a folder named in lower-case letters, "
                          f"digits and dashes, and not {AUTO}.")
    if path.exists() and not can_be_replaced(path):
        raise GenSegError(f"{path} holds something other than a bundle: choose another folder.")
    return path


def add_task_options(parser: argparse.ArgumentParser, task: type[Task]) -> None:
    """One option per parameter: ``--steps N``, with the parameter's own help, range and default.

    A parameter that holds points becomes a repeatable option in the singular (``seed_points``: ``--seed-point L,P,S``),
    a tuple of words a comma-separated list, a bool the pair ``--x`` and ``--no-x``.
    """
    group = parser.add_argument_group("options of this task")
    has_points = False
    for name, field in task.parameters().items():
        kind = _without_none(parameter_type(task, name))
        option = "--" + name.replace("_", "-")
        help_text = _help(field)
        common: dict[str, Any] = {"dest": _destination(name), "default": argparse.SUPPRESS, "help": help_text}
        if kind is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, **common)
        elif _is_points(kind):
            has_points = True
            group.add_argument(option.removesuffix("s"), action="append", type=_point, metavar="L,P,S", **common)
        else:
            convert, metavar = _converter(kind)
            group.add_argument(option, type=convert, metavar=metavar, **common)
    if has_points:
        group.add_argument("--ras", action="store_true", help="points are RAS mm, as Slicer displays them, not LPS")


def task_from(task: type[Task], arguments: argparse.Namespace) -> Task:
    """The task with the parameters that were given; points end in LPS.

    Raises:
        WrongUse: if a value lies outside its range.
    """
    given: dict[str, Any] = {}
    for name in task.parameters():
        if not hasattr(arguments, _destination(name)):
            continue
        value = getattr(arguments, _destination(name))
        if _is_points(_without_none(parameter_type(task, name))):
            sign = -1.0 if arguments.ras else 1.0
            value = tuple((sign * first, sign * second, third) for first, second, third in value)
        given[name] = value
    try:
        return task(**given)
    except GenSegError as error:
        raise WrongUse(str(error)) from error


def add_mask_options(parser: argparse.ArgumentParser, task: type[Task], folders: bool = False) -> None:
    """``--lungs FILE`` for every input besides the scan; for many cases a folder with one file per case."""
    for role, help_text in list(task.inputs.items())[1:]:
        note = ": a folder with a file of the same name for every case" if folders else ""
        parser.add_argument(f"--{role.replace('_', '-')}", dest=f"input_{role}", type=Path,
                            metavar="DIR" if folders else "FILE", help=_escape(help_text) + note)


def masks_from(task: type[Task], arguments: argparse.Namespace) -> dict[str, Path]:
    """Role -> path of the inputs besides the scan that were given."""
    paths = {role: getattr(arguments, f"input_{role}") for role in list(task.inputs)[1:]}
    return {role: path for role, path in paths.items() if path is not None}


def join_negative_values(words: Sequence[str]) -> list[str]:
    """``--seed-point -12,3,4`` as ``--seed-point=-12,3,4``: argparse takes a word like ``-12,3,4`` for an option."""
    joined: list[str] = []
    for word in words:
        if joined and re.match(r"-\.?\d", word) and re.fullmatch(r"--[a-z][a-z-]*", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _destination(name: str) -> str:
    return f"parameter_{name}"


def _without_none(kind: Any) -> Any:
    """``X`` for ``X | None``."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [part for part in typing.get_args(kind) if part is not type(None)]
        return kinds[0]
    return kind


def _is_points(kind: Any) -> bool:
    parts = typing.get_args(kind)
    return (typing.get_origin(kind) is tuple and len(parts) == 2 and parts[1] is Ellipsis
            and typing.get_origin(parts[0]) is tuple)


def _converter(kind: Any) -> tuple[Callable[[str], Any], str]:
    if typing.get_origin(kind) is tuple:
        convert, metavar = _converter(typing.get_args(kind)[0])
        return _list_of(convert), f"{metavar},{metavar}..."
    if kind in (int, float):
        return kind, "N" if kind is int else "X"
    if kind in (str, Path):
        return kind, "TEXT"
    raise TypeError(f"a parameter of type {kind} cannot become an option")


def _list_of(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def items(text: str) -> tuple[Any, ...]:
        try:
            return tuple(convert(part.strip()) for part in text.split(",") if part.strip())
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers") from error

    return items


def _point(text: str) -> Point:
    try:
        first, second, third = (float(part) for part in text.split(","))
        if not all(map(math.isfinite, (first, second, third))):
            raise ValueError
    except ValueError as error:
        message = f"{text!r} is not a point: give three numbers in mm, such as -42.5,10,-130"
        raise argparse.ArgumentTypeError(message) from error
    return first, second, third


def _help(field: dataclasses.Field) -> str:
    text, minimum, maximum, choices, unit = (
        field.metadata.get(key) for key in ("help", "minimum", "maximum", "choices", "unit"))
    notes = [", ".join(choices)] if choices else []
    if minimum is not None and maximum is not None:
        notes.append(f"{minimum} to {maximum}")
    elif minimum is not None:
        notes.append(f"at least {minimum}")
    if unit:
        notes.append(unit)
    if field.default not in ((), "", None):
        notes.append(f"default {field.default}")
    return _escape(f"{text} ({'; '.join(notes)})" if notes else str(text))


def _escape(text: str) -> str:
    return text.replace("%", "%%")
