"""The training loop, its settings, checkpoints and run folder; `craft.lessons` says what is learned."""

from craft.core.interrupt import Interrupted
from craft.training.config import AdaptConfig
from craft.training.run_folder import RunFolder

__all__ = ["AdaptConfig", "Interrupted", "RunFolder"]
