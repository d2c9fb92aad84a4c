"""Justified answers before a judge (§4.3, §7). A newcomer opens `judge` first, then `cases`."""

from craft.judging.config import JudgeConfig
from craft.judging.judge import make_judge
from craft.judging.report import JudgeReport

__all__ = ["JudgeConfig", "JudgeReport", "make_judge"]
