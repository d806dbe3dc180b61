"""Benchmarks, and what they measure with: metrics, attribution maps, tables."""

BENCHMARKS: dict[str, str] = {
    "nodules-phantom": "GenSegLogic.evaluation.nodules:nodules_phantom",
    "luna16": "GenSegLogic.evaluation.luna16:luna16",
}
"""``genseg evaluate NAME``: name -> ``module:function``, which takes the command's own arguments and progress, and
returns what ``--json`` prints. The module's ``add_arguments(parser)`` declares the arguments."""
