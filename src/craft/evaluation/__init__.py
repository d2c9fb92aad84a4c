"""Answers to questions, how they are marked, accuracy with intervals, and comparisons of runs."""

from craft.evaluation.classes import class_table, confusion
from craft.evaluation.compare import Comparison, compare
from craft.evaluation.config import EvalConfig, Protocol, TransferConfig
from craft.evaluation.export import add_to_card, to_lmms
from craft.evaluation.matching import lenient, option_named, strict, unparseable
from craft.evaluation.metrics import bootstrap_interval, grouped_interval
from craft.evaluation.report import Report, merge, read_samples, samples_in
from craft.evaluation.run import answers_to, evaluate_lvlm

__all__ = [
    "Comparison",
    "EvalConfig",
    "Protocol",
    "Report",
    "TransferConfig",
    "add_to_card",
    "answers_to",
    "bootstrap_interval",
    "class_table",
    "compare",
    "confusion",
    "evaluate_lvlm",
    "grouped_interval",
    "lenient",
    "merge",
    "option_named",
    "read_samples",
    "samples_in",
    "strict",
    "to_lmms",
    "unparseable",
]
