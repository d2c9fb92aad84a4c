"""Floor 1: which visual tokens the LLM gets to see at test time: functions on `VisionTokens` (§3.3)."""

from craft.pruning.prune import BUDGETS, budget_of, prune_tokens
from craft.pruning.strategies import STRATEGIES, Settings

__all__ = ["BUDGETS", "STRATEGIES", "Settings", "budget_of", "prune_tokens"]
