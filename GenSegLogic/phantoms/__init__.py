"""Procedural scans with exact truth."""

KINDS: dict[str, str] = {
    "chest": "GenSegLogic.phantoms.kinds:chest",
    "abdomen-ct": "GenSegLogic.phantoms.abdomen_kinds:ct",
    "abdomen-mr": "GenSegLogic.phantoms.abdomen_kinds:mr",
    "abdomen-mr-t1": "GenSegLogic.phantoms.abdomen_kinds:mr_t1",
    "abdomen-mr-t2": "GenSegLogic.phantoms.abdomen_kinds:mr_t2",
}
"""``genseg phantom KIND``: name -> ``module:function``, which takes a seed and returns file stem -> volume,
segmentation or rows of a table."""
