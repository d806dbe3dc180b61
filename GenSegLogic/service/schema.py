"""Tasks as the service describes them, and parameters from JSON. Imported by the server only, for it needs pydantic."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .. import tasks
from ..bundles import list_bundles
from ..errors import GenSegError
from ..provenance import plain
from ..task import Task, parameter_type

_TEXT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .,+-]{0,199}|")


def _adapter(task: type[Task], name: str) -> TypeAdapter:
    return TypeAdapter(parameter_type(task, name), config=ConfigDict(strict=True, allow_inf_nan=False))


def describe_task(name: str) -> dict[str, Any]:
    """Title, inputs and parameters of a task, with type (JSON schema), default, range and help of each parameter.

    Raises:
        GenSegError: if a library that the task needs is missing.
    """
    task = tasks.load_task(name)
    return {
        "name": name,
        "title": task.title,
        "inputs": dict(task.inputs),
        "parameters": [
            {"name": key, "type": _adapter(task, key).json_schema(), "default": plain(field.default),
             **{word: plain(field.metadata.get(word)) for word in ("help", "minimum", "maximum", "choices", "unit")}}
            for key, field in task.parameters().items()
        ],
    }


def make_task(name: str, parameters: Mapping[str, Any]) -> Task:
    """A task from JSON values, each checked against its type and range.

    Raises:
        GenSegError: naming the parameter and what is wrong with it.
    """
    task = tasks.load_task(name)
    fields = task.parameters()
    values = {}
    for key, value in parameters.items():
        if key not in fields:
            raise GenSegError(f"{name} has no parameter {key[:60]!r}; it has {', '.join(fields)}.")
        for text in _texts(value):
            if not _TEXT.fullmatch(text):
                raise GenSegError(f"{name}: {key} must be a plain name; paths are not accepted here.")
        if isinstance(value, str):
            _check_name(name, value)
        try:
            values[key] = _adapter(task, key).validate_json(json.dumps(value))  # strict, yet an array makes a tuple
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise GenSegError(f"{name}: {key} does not fit: {message[:1].lower()}{message[1:]}.") from error
    required = [key for key, field in fields.items()
                if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING]
    missing = [key for key in required if key not in values]
    if missing:
        raise GenSegError(f"{name} needs the parameter {missing[0]}.")
    return task(**values)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts([*value.keys(), *value.values()])


def _check_name(task: str, text: str) -> None:
    """Of a bundle, for one: on the command line it may be a folder, but a client's paths are not followed."""
    if text and Path(text).exists() and text not in {bundle.name for bundle in list_bundles()}:
        raise GenSegError(f"{task}: there is no bundle {text!r}; paths are not accepted here.")
