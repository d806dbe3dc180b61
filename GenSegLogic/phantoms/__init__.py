"""Procedural scans with exact truth."""

KINDS: dict[str, str] = {
    "chest": "GenSegLogic.phantoms.kinds:chest",
}
"""``genseg phantom KIND``: name -> ``module:function``, which takes a seed and returns file stem -> volume,
segmentation or rows of a table."""
