"""CRAFT under other settings: the weights of the losses, and what the paper leaves open."""

from dataclasses import dataclass
from typing import Any

from craft.experiments.accuracy import HOW, Line, accuracies, ahead, cells_of, classes, measured
from craft.experiments.cells import CRAFT, Cell, Method
from craft.experiments.plan import Plan
from craft.experiments.publish import Data, footer
from craft.experiments.work import Work


@dataclass(frozen=True)
class Sweep:
    """Lines that differ in settings; the first is what the others are compared with.

    Attributes:
        title: of the page.
        about: what is changed, and what the paper says of it.
        settings: of each line, by its label.
    """

    title: str
    about: str
    settings: dict[str, tuple[tuple[str, Any], ...]]

    def lines(self, plan: Plan) -> list[Line]:
        """One setting each, with the plan's first surrogate and backbone."""
        surrogate, backbone = plan.surrogates[0], plan.backbones[0]
        return [
            Line(label, Method(CRAFT, surrogate, settings), backbone)
            for label, settings in self.settings.items()
        ]

    def cells(self, plan: Plan) -> list[Cell]:
        """What the sweep asks for."""
        return cells_of(plan, self.lines(plan))

    def measure(self, work: Work) -> Data:
        """All lines."""
        return measured(work, self.lines(work.plan), than=next(iter(self.settings)))

    def page(self, data: Data) -> str:
        """The sweep as Markdown."""
        parts = [
            f"# {self.title}\n",
            HOW,
            self.about + "\n",
            accuracies(data) + "\n",
            f"Points ahead of the first line, {data['than']} [95 % interval]:\n",
            ahead(data, data["than"]) + "\n",
            "## Seen and unseen classes, codes\n",
            classes(data) + "\n",
            footer(data),
        ]
        return "\n".join(parts)


def _weights(contrastive: float = 0.0, commitment: float = 0.1) -> tuple[tuple[str, float], ...]:
    """Both weights, whatever the plan's are: a plan of the paper's scale has λ_con 1."""
    return (("losses.contrastive.weight", contrastive), ("losses.commitment.weight", commitment))


LAMBDAS = Sweep(
    "The weights of the losses",
    "One weight is changed at a time. The paper takes λ_commit 0.1, and λ_con 1 for classification and 0.1 "
    "for VQA (§4.1); it prints no sweep.",
    {
        "λ_con 0, λ_commit 0.1 (shipped)": _weights(),
        "λ_con 0.1": _weights(contrastive=0.1),
        "λ_con 1": _weights(contrastive=1.0),
        "λ_commit 0.01": _weights(commitment=0.01),
        "λ_commit 1": _weights(commitment=1.0),
    },
)
"""One weight at a time."""

OPEN = Sweep(
    "What the paper leaves open",
    "Is it the codebook alone, or what regulates the tower beside it? And does the whole tower have to be "
    "tuned? The second line is Vision FT with the codebook: CRAFT without commitment and contrastive term. "
    "The third tunes the tower's layers by LoRA; the last two keep 30 % of what was learned on all domains, "
    "and all of it (the first keeps 30 % where training has fewer than 30 classes, else all). None has the "
    "retention loss, which the paper has not either.",
    {
        "CRAFT (shipped)": (),
        "without commitment": _weights(commitment=0.0),
        "LoRA on the tower": (("trainable", "lora"),),
        "blend 0.3": (("blend", 0.3),),
        "blend 1": (("blend", 1.0),),
    },
)
"""Questions of ours."""
