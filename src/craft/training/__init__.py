"""Floor 3: the objective (Eq. 2 to 5) and one training loop."""

from craft.training.config import AdaptConfig
from craft.training.fit import FitResult, fit
from craft.training.interrupt import Interrupted
from craft.training.objective import Batch, CraftObjective
from craft.training.run_folder import RunFolder

__all__ = ["AdaptConfig", "Batch", "CraftObjective", "FitResult", "Interrupted", "RunFolder", "fit"]
