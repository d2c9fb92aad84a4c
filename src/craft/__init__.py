"""CRAFT: adapt the vision tower of a discrete LVLM to a new domain, once for every LLM of its codebook.

`import craft` is light: every name below is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from craft import data, evaluation, losses, models, pruning, quantize, recipes, training
    from craft.core.errors import CraftError
    from craft.core.tokens import VisionTokens
    from craft.formats.load import load
    from craft.pruning.prune import prune_tokens
    from craft.recipes.adapt import adapt
    from craft.recipes.align import align
    from craft.recipes.evaluate import evaluate
    from craft.recipes.transfer import transfer

__version__ = "0.1.0"

__all__ = [
    "CraftError",
    "VisionTokens",
    "__version__",
    "adapt",
    "align",
    "data",
    "evaluate",
    "evaluation",
    "load",
    "losses",
    "models",
    "prune_tokens",
    "pruning",
    "quantize",
    "recipes",
    "training",
    "transfer",
]

_HOME = {
    "CraftError": "craft.core.errors",
    "VisionTokens": "craft.core.tokens",
    "adapt": "craft.recipes.adapt",
    "align": "craft.recipes.align",
    "evaluate": "craft.recipes.evaluate",
    "load": "craft.formats.load",
    "prune_tokens": "craft.pruning.prune",
    "transfer": "craft.recipes.transfer",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in __all__:
        return import_module(f"craft.{name}")
    raise AttributeError(f"module 'craft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
