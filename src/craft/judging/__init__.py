"""Floor 5: justified answers before a judge. `judge` has the whole; `cases` says what a judge sees and replies."""

from craft.judging.config import JudgeConfig
from craft.judging.judge import make_judge
from craft.judging.report import JudgeReport

__all__ = ["JudgeConfig", "JudgeReport", "make_judge"]
