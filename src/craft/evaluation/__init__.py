"""Floor 4: greedy answers, matching, figures with intervals."""

from craft.evaluation.matching import lenient, option_named, strict, unparseable
from craft.evaluation.metrics import bootstrap_interval
from craft.evaluation.report import Report, merge
from craft.evaluation.run import evaluate_lvlm

__all__ = [
    "Report",
    "bootstrap_interval",
    "evaluate_lvlm",
    "lenient",
    "merge",
    "option_named",
    "strict",
    "unparseable",
]
