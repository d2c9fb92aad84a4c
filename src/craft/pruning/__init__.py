"""Floor 1: which visual tokens the LLM gets to see at test time: functions on `VisionTokens` (§3.3)."""

from craft.pruning.prune import Budget, budget_of, prune_tokens
from craft.pruning.strategies import STRATEGIES, Settings

__all__ = ["STRATEGIES", "Budget", "Settings", "budget_of", "prune_tokens"]
