"""Floor 0: the few types that travel, errors, seeding, device and dtype, atomic files, progress."""

from craft.core.errors import (
    CheckpointError,
    CodebookMismatchError,
    ConfigError,
    CraftError,
    DataError,
    TrainingError,
)
from craft.core.tokens import VisionTokens

__all__ = [
    "CheckpointError",
    "CodebookMismatchError",
    "ConfigError",
    "CraftError",
    "DataError",
    "TrainingError",
    "VisionTokens",
]
