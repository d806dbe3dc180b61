"""What a task is: a frozen dataclass of parameters, and ``run``.

A task is the single source for the command line's options, the service's schema, the panel's ranges and tool tips,
and the provenance record. Parameters are declared with :func:`parameter`, so that each carries its range and one line
of description.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .errors import GenSegError

if TYPE_CHECKING:
    from .bundles import Bundle
    from .engine import Engine
    from .progress import Progress
    from .results import Results
    from .volume import Volume

LARGEST_SEED = 2**31 - 1
"""What every generator of random numbers takes, and every widget that shows a whole number."""


def parameter(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    unit: str = "",
) -> Any:
    """Declare one parameter of a task: a dataclass field with its description, range and unit.

    ``default`` must be immutable; a list-valued parameter takes a tuple.
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices, "unit": unit}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Task:
    """Base of all tasks. Subclasses are frozen dataclasses whose fields are made with :func:`parameter`.

    Attributes of the class (not parameters):
        name: the word used on the command line and in the service (``nodules``).
        title: what people read (``Lung nodules``).
        inputs: role of every input volume -> one line of help; ``image`` is always first and required, the others
            (``lungs``, ``organ``) optional masks.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    inputs: ClassVar[Mapping[str, str]] = {"image": "the scan"}

    seed: int = parameter(0, "Seed of all random numbers; the same seed gives the same result.", minimum=0,
                          maximum=LARGEST_SEED)

    def __post_init__(self) -> None:
        """Check every parameter against its type and range; lists and arrays become tuples.

        Raises:
            GenSegError: naming the parameter, its value and what is allowed.
        """
        types = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                value = _typed(value, types[field.name])
            except TypeError as error:
                wanted = _in_words(types[field.name])
                raise GenSegError(f"{self.name}: {field.name} is {value!r}, but must be {wanted}.") from error
            object.__setattr__(self, field.name, value)  # the only way in a frozen dataclass
            check_parameter(self.name, field, value)

    @classmethod
    def parameters(cls) -> dict[str, dataclasses.Field]:
        """Name -> field; ``field.metadata`` holds help, minimum, maximum, choices and unit."""
        return {field.name: field for field in dataclasses.fields(cls)}

    def describe(self) -> dict[str, Any]:
        """All parameters as plain JSON values, for provenance."""
        return dataclasses.asdict(self)

    def bundles(self, volumes: Mapping[str, Volume]) -> tuple[Bundle, ...]:
        """The bundles that :meth:`run` loads for these volumes.

        Raises:
            GenSegError: if one of them is not there.
        """
        return ()

    def memory_bytes(self, volumes: Mapping[str, Volume], engine: Engine) -> int:
        """Estimate of the peak working memory of :meth:`run` on the engine's device, in bytes."""
        raise TypeError(f"{type(self).__name__} does not estimate its memory")

    def lighter(self) -> Task | None:
        """The same task with a smaller working set (a smaller window), for short memory; None: there is none."""
        return None

    def preflight(self, volumes: Mapping[str, Volume]) -> list[str]:
        """Doubts about the input, one sentence each (not CT, thick slices); empty when all is well. Fast, no models."""
        return []

    def run(self, volumes: Mapping[str, Volume], engine: Engine, progress: Progress) -> Results:
        """Do the work. ``volumes["image"]`` is the scan. Raises GenSegError or Cancelled."""
        raise TypeError(f"{type(self).__name__} cannot run")


def _typed(value: Any, expected: Any) -> Any:
    """``value`` as a parameter of type ``expected``; raises TypeError where it is none."""
    if hasattr(value, "tolist"):  # of NumPy
        value = value.tolist()
    if typing.get_origin(expected) is tuple:
        items = typing.get_args(expected)
        if not isinstance(value, (tuple, list)) or (items[-1] is not Ellipsis and len(value) != len(items)):
            raise TypeError
        return tuple(_typed(item, items[0]) for item in value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is int and number and value == value // 1:
        return int(value)
    if (expected is float and number) or (expected not in (int, float) and isinstance(value, expected)):
        return value
    raise TypeError


def _in_words(expected: Any) -> str:
    if typing.get_origin(expected) is tuple:
        items = typing.get_args(expected)
        return f"a list, each of it {_in_words(items[0])}" if items[-1] is Ellipsis else f"{len(items)} numbers"
    return {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}[expected]


def check_parameter(task: str, field: dataclasses.Field, value: Any) -> None:
    """Raise GenSegError if ``value`` lies outside the field's range or choices."""
    minimum, maximum, choices = (field.metadata.get(key) for key in ("minimum", "maximum", "choices"))
    if choices is not None and value not in choices:
        raise GenSegError(f"{task}: {field.name} is {value!r}, but must be one of {', '.join(choices)}.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if value != value or (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        span = f"between {minimum} and {maximum}" if maximum is not None else f"at least {minimum}"
        raise GenSegError(f"{task}: {field.name} is {value}, but must be {span}.")


def parameter_type(task: type[Task], name: str) -> Any:
    """The annotated type of a parameter, resolved."""
    return typing.get_type_hints(task)[name]
