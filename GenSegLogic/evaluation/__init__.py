"""Benchmarks, and what they measure with: metrics, attribution maps, tables."""

BENCHMARKS: dict[str, str] = {
    "nodules-phantom": "GenSegLogic.evaluation.nodules:nodules_phantom",
    "luna16": "GenSegLogic.evaluation.luna16:luna16",
    "organs-phantom": "GenSegLogic.evaluation.organs_phantom:organs_phantom",
    "organs-few-shot": "GenSegLogic.evaluation.organs_few_shot:organs_few_shot",
    "organs-source-free": "GenSegLogic.evaluation.organs_source_free:organs_source_free",
    "btcv": "GenSegLogic.evaluation.btcv:btcv",
    "chaos": "GenSegLogic.evaluation.chaos:chaos",
}
"""``genseg evaluate NAME``: name -> ``module:function``, which takes the command's own arguments and progress, and
returns what ``--json`` prints. The module's ``add_arguments(parser)`` declares the arguments."""
