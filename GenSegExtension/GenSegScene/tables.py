"""Result tables as table nodes. Files hold LPS coordinates, tables in Slicer RAS, as everything that Slicer shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import slicer
import vtk

SEGMENT_ID = "segment_id"
STATUS = "status"

_TITLES = {
    "center_r_mm": "R (mm)",
    "center_a_mm": "A (mm)",
    "center_s_mm": "S (mm)",
    "long_axis_mm": "Long axis (mm)",
    "short_axis_mm": "Short axis (mm)",
    "mean_axis_mm": "Mean axis (mm)",
    "volume_mm3": "Volume (mm³)",
    "volume_ml": "Volume (ml)",
    "solid_percent": "Solid (%)",
    "mean_hu": "Mean HU",
}


def table_to_node(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], name: str) -> Any:
    """Write rows into a new table node that the user cannot edit by accident.

    Args:
        rows: dicts that share their columns; LPS coordinate columns end in ``_l_mm`` and ``_p_mm``.
        columns: names of the columns; taken from the first row when empty.
        name: name of the node.

    Returns:
        vtkMRMLTableNode; coordinates in RAS, columns ``_r_mm`` and ``_a_mm``.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", name)
    fill_table(node, [to_ras(row) for row in rows], list(to_ras(dict.fromkeys(columns or (rows[0] if rows else ())))))
    return node


def fill_table(node: Any, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Replace the content of a table node. Numbers become number columns, so that they sort as numbers.

    None, or nothing, among numbers is kept as "not a number", which :func:`read_table` turns back.
    """
    table = vtk.vtkTable()
    for column in columns:
        values = [row.get(column) for row in rows]
        given = [value for value in values if value not in (None, "")]
        numeric = bool(given) and all(isinstance(value, (int, float)) and not isinstance(value, bool)
                                      for value in given)
        whole = numeric and len(given) == len(values) and not any(isinstance(value, float) for value in given)
        array = vtk.vtkIntArray() if whole else vtk.vtkDoubleArray() if numeric else vtk.vtkStringArray()
        missing = math.nan if numeric else ""
        array.SetName(column)
        for value in values:
            array.InsertNextValue(missing if value in (None, "") else value if numeric else str(value))
        table.AddColumn(array)
    modified = node.StartModify()
    node.SetLocked(True)
    node.SetAndObserveTable(table)
    node.SetUseColumnTitleAsColumnHeader(True)
    for column in columns:
        node.SetColumnTitle(column, _TITLES.get(column, column.replace("_", " ").capitalize()))
    node.EndModify(modified)


def read_table(node: Any) -> list[dict[str, Any]]:
    """The rows of a table node, numbers as numbers, and None where one is missing."""
    table = node.GetTable()
    names = [table.GetColumnName(index) for index in range(table.GetNumberOfColumns())]
    return [{name: _plain(table.GetValue(row, index)) for index, name in enumerate(names)}
            for row in range(table.GetNumberOfRows())]


def column_names(node: Any) -> list[str]:
    """Names of the columns of a table node."""
    return [node.GetColumnName(index) for index in range(node.GetNumberOfColumns())]


def to_ras(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with ``*_l_mm`` and ``*_p_mm`` turned into ``*_r_mm`` and ``*_a_mm``; floats kept to 0.001."""
    turned = {}
    for key, value in row.items():
        for lps, ras in (("_l_mm", "_r_mm"), ("_p_mm", "_a_mm")):
            if key.endswith(lps):
                key, value = key.removesuffix(lps) + ras, -value if value is not None else None
        turned[key] = round(float(value), 3) if isinstance(value, float) else value
    return turned


def _plain(variant: Any) -> Any:
    if variant.IsInt():
        return variant.ToInt()
    if not variant.IsNumeric():
        return variant.ToString()
    number = variant.ToDouble()
    return None if math.isnan(number) else number
