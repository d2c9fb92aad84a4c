"""Floor 1: selection of the visual tokens that the LLM sees at test time, as functions (§3.3)."""

from craft.pruning.prune import Budget, budget_of, prune_tokens
from craft.pruning.strategies import STRATEGIES, PruningSettings

__all__ = ["STRATEGIES", "Budget", "PruningSettings", "budget_of", "prune_tokens"]
