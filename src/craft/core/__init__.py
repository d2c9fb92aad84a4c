"""Floor 0: shared types, errors, seeding, device and dtype, atomic files, settings, processes, progress."""

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
