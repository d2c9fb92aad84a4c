"""Floor 0: errors, tokens, seeding, device and dtype, atomic files, settings, processes, text, progress."""

from craft.core.errors import (
    CheckpointError,
    CodebookMismatchError,
    ConfigError,
    CraftError,
    DataError,
    TrainingError,
)

__all__ = [
    "CheckpointError",
    "CodebookMismatchError",
    "ConfigError",
    "CraftError",
    "DataError",
    "TrainingError",
]
