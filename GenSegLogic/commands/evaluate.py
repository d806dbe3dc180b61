"""``genseg evaluate BENCHMARK``: run a benchmark and print its table."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any

from ..tasks import load
from .console import Console
from .options import WrongUse, asked_for, device, positive

_OWN_ARGUMENTS = ("command", "task_name", "quiet", "json", "benchmark")
_CHECKS: dict[str, Callable[[str], Any]] = {"device": device, "minutes": positive, "unet_minutes": positive}
"""What the values of benchmarks' options must be that benchmarks, which lie below the commands, cannot say."""


def configure(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Benchmarks are named in :data:`GenSegLogic.evaluation.BENCHMARKS`; each may add arguments of its own."""
    from ..evaluation import BENCHMARKS

    parser.add_argument("benchmark", metavar="BENCHMARK", choices=list(BENCHMARKS),
                        help=f"one of {', '.join(BENCHMARKS)}")
    add_own_arguments(parser, BENCHMARKS, words)


def add_own_arguments(parser: argparse.ArgumentParser, targets: Mapping[str, str], words: Sequence[str]) -> None:
    """Call ``add_arguments(parser)`` of the module of the target that ``words`` name, where it has one."""
    asked = asked_for(words, targets)
    if asked is not None:
        module = importlib.import_module(targets[asked].split(":")[0])
        if hasattr(module, "add_arguments"):
            module.add_arguments(parser)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run, print the tables, hand out the benchmark's own result."""
    from ..evaluation import BENCHMARKS

    own = {name: value for name, value in vars(arguments).items() if name not in _OWN_ARGUMENTS}
    for name in _CHECKS.keys() & own.keys():
        try:
            _CHECKS[name](str(own[name]))
        except argparse.ArgumentTypeError as error:
            raise WrongUse(f"argument --{name.replace('_', '-')}: {error}") from error
    result = load(BENCHMARKS[arguments.benchmark])(own, console.progress)
    for name, value in result.items():
        if _is_rows(value):
            console.say(f"{name}:" if name != "rows" else str(arguments.benchmark))
            for line in format_table(value):
                console.say(f"  {line}")
        elif isinstance(value, Mapping):
            console.say(f"{name}: " + ", ".join(f"{key} {_text(item)}" for key, item in value.items()))
        elif name == "note":
            console.say(str(value))
    return result


def format_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of mappings as aligned lines, header first; numbers to the right, words to the left."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_text(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns))]
    numeric = [all(isinstance(row.get(name), (int, float, NoneType)) for row in rows) for name in columns]
    lines = []
    for line in cells:
        padded = (text.rjust(width) if right else text.ljust(width)
                  for text, width, right in zip(line, widths, numeric, strict=True))
        lines.append("  ".join(padded).rstrip())
    return lines


def _is_rows(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return str(value)
