"""Figure 5 and the ablation of §4.6: the accuracy that pruning costs, by keep ratio and by strategy."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from craft.core.files import atomic_write_bytes
from craft.core.progress import say
from craft.data.images import lazy_image
from craft.evaluation.metrics import Group, interval
from craft.formats.code_cache import image_names
from craft.pruning import STRATEGIES
from paper.accuracy import covers
from paper.cells import marks_of
from paper.pruned import Pruning, subjects
from paper.publish import Data, footer, percent, points, table
from paper.work import Work

RATIOS = (0.2, 0.4, 0.6, 0.8)
"""Keep ratios below 1 (Figure 5)."""

PAPER = {
    "random": 62.10,
    "quota": 63.55,
    "quota+residual": 63.86,
    "full": 64.05,
    "full, general prior": 64.01,
}
"""Average accuracy of VILA-U-7B at 0.8, from §4.6. "full" is Table 5's average of four benchmarks."""

SETUP = """\
Every strategy drops whole tokens before the projector, so all of them cost the LLM the same; the remaining
tokens are packed, as in the paper. `random` picks at random, `strided` takes evenly spaced patches.
`quota`, `quota+residual` and `full` are the paper's ladder (§3.3, §4.6). `divprune` maximises the smallest
cosine distance of the codeword sums; `cls-attention` takes what [CLS] attends to in the tower's last layer
(VisionZip without its merging); `fastv` takes what the prompt's last token attends to in the LLM's second
layer, in an extra pass that sees every token. Questions are asked as in `craft eval`: greedy, at most five
tokens, exact match.
"""

COLOURS = {
    "random": "#8c959f",
    "strided": "#57606a",
    "quota": "#b6d7ff",
    "quota+residual": "#6cb0ff",
    "full": "#0550ae",
    "divprune": "#bf3989",
    "cls-attention": "#1a7f37",
    "fastv": "#d4791c",
}


FIG5 = [Pruning(), *(Pruning(strategy, ratio) for strategy in STRATEGIES for ratio in RATIOS)]
"""No pruning, and every strategy at every keep ratio."""


def measure_fig5(work: Work) -> Data:
    """Accuracy by domain, backbone, seed, strategy and keep ratio."""
    return measured(work, {f"{one.strategy} at {one.keep:g}": one for one in FIG5})


ABLATION = {
    "no pruning": Pruning(),
    "strided": Pruning("strided", 0.8),
    "random": Pruning("random", 0.8),
    "quota": Pruning("quota", 0.8),
    "quota+residual": Pruning("quota+residual", 0.8),
    "full": Pruning("full", 0.8),
    "full, general prior": Pruning("full", 0.8, prior="general"),
    "full, positions kept": Pruning("full", 0.8, keep_positions=True),
}
"""The paper's ladder at 0.8, the general prior, and tokens that keep their positions."""


def measure_ablation(work: Work) -> Data:
    """Accuracy under `ABLATION`."""
    return measured(work, ABLATION)


def measured(work: Work, prunings: dict[str, Pruning], split: str = "test") -> Data:
    """Every pruning for every subject, and paired differences.

    Args:
        work: the plan and its work folder.
        prunings: by name (`way` in the result).
        split: of the questions.

    Returns:
        `rows`: one per subject and way. `differences`: for each way, how far `other` is ahead of it on the
        same questions, as the mean over subjects with its 95 % interval over images and seeds. `other` is
        "full" at the same keep ratio, or no pruning.
    """
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in prunings}
    rows, images, seeds = list[Data](), list[list[str]](), list[int]()
    count = len(work.plan.domains) * len(work.plan.seeds) * len(work.plan.backbones)
    for number, subject in enumerate(subjects(work, split), start=1):
        say(f"{number} of {count}: {subject.domain}, seed {subject.seed}, {subject.backbone}")
        images.append(image_names([sample.image for sample in subject.samples]))
        seeds.append(subject.seed)
        for name, pruning in prunings.items():
            answer = subject.ask(pruning)
            answers[name].append(answer)
            about = {"domain": subject.domain, "seed": subject.seed, "backbone": subject.backbone}
            rows.append(
                {**about, "way": name, "strategy": pruning.strategy, "keep": pruning.keep}
                | {key: value for key, value in answer.items() if key != "marks"}
            )
    marks = {name: list(map(marks_of, cells)) for name, cells in answers.items()}
    whole = next(name for name, pruning in prunings.items() if pruning.keep == 1)
    differences = []
    for name, pruning in prunings.items():
        if pruning.keep == 1:
            continue
        same = Pruning("full", pruning.keep)
        full = next((other for other, candidate in prunings.items() if candidate == same), name)
        for other in {full: 0, whole: 0}:
            gaps = [after - before for after, before in zip(marks[other], marks[name], strict=True)]
            low, high = interval(list(map(Group, gaps, images, seeds)), (-1.0, 1.0))
            mean = float(np.mean([gap.mean() for gap in gaps]))
            differences.append({"way": name, "other": other, "mean": mean, "low": low, "high": high})
    return {"rows": rows, "differences": differences}


def averages(data: Data, way: str) -> list[float]:
    """Per seed the mean accuracy over domains and backbones."""
    rows = [row for row in data["rows"] if row["way"] == way]
    seeds = sorted({row["seed"] for row in rows})
    return [float(np.mean([row["accuracy"] for row in rows if row["seed"] == seed])) for seed in seeds]


def difference(data: Data, way: str, other: str) -> Data:
    """How far `other` is ahead of `way`: mean and interval."""
    return next(gap for gap in data["differences"] if (gap["way"], gap["other"]) == (way, other))


def ahead(data: Data, way: str, other: str) -> str:
    """How far `other` is ahead of `way`: "+1.2 [0.4, 2.0]"."""
    return points(difference(data, way, other))


def fig5_page(data: Data) -> str:
    """Figure 5 as Markdown."""
    whole, over = "full at 1", covers(data)
    heads = [f"{ratio:g}" for ratio in RATIOS]
    spread = [
        [
            strategy,
            *(percent(averages(data, f"{strategy} at {r:g}")) for r in RATIOS),
            percent(averages(data, whole)),
        ]
        for strategy in STRATEGIES
    ]
    rivals = [
        [name, *(ahead(data, f"{name} at {r:g}", f"full at {r:g}") for r in RATIOS)]
        for name in STRATEGIES
        if name != "full"
    ]
    losses = [["full", *(ahead(data, f"full at {r:g}", whole) for r in RATIOS)]]
    parts = [
        "# Figure 5: accuracy against keep ratio\n",
        SETUP,
        "![Accuracy against keep ratio](fig5.png)\n",
        "## On average\n",
        "Strict accuracy in percent, mean over domains and backbones ± standard deviation over seeds.\n",
        table(["strategy", *heads, "1"], spread) + "\n",
        f"Points lost against no pruning, on the same questions [95 % interval, {over}]:\n",
        table(["strategy", *heads], losses) + "\n",
        "Points that `full` is ahead of each other strategy, on the same questions [95 % interval, "
        f"{over}]:\n",
        table(["strategy", *heads], rivals) + "\n",
        verdict(data) + "\n",
        *_by_subject(data, heads),
        "## How much there is to choose from\n",
        _codes(data) + "\n",
        footer(data),
    ]
    return "\n".join(parts)


def verdict(data: Data) -> str:
    """Points lost at 0.8, and the strategies whose interval at 0.6 and 0.4 lies apart from `full`."""
    loss = difference(data, "full at 0.8", "full at 1")
    text = f"- At 0.8 `full` loses {100 * loss['mean']:.1f} points on average"
    text += f" [{100 * loss['low']:.1f}, {100 * loss['high']:.1f}]"
    lines = [text + (" (the goal was at most 1)." if loss["mean"] > 0.01 else ".")]
    for ratio in (0.6, 0.4):
        gaps = {
            name: difference(data, f"{name} at {ratio:g}", f"full at {ratio:g}")
            for name in STRATEGIES
            if name != "full"
        }
        groups = {
            "ahead of": [name for name, gap in gaps.items() if gap["low"] > 0],
            "behind": [name for name, gap in gaps.items() if gap["high"] < 0],
        }
        parts = [f"{where} {', '.join(f'`{n}`' for n in names)}" for where, names in groups.items() if names]
        lines.append(
            f"- At {ratio:g} `full` is {' and '.join(parts) or 'neither ahead of nor behind any strategy'} "
            "(95 % interval without 0)."
        )
    return "\n".join(lines)


def _by_subject(data: Data, heads: Sequence[str]) -> list[str]:
    """A table for each domain and backbone."""
    parts = [
        "## By domain and backbone\n",
        "Strict accuracy in percent, mean ± standard deviation over seeds.\n",
    ]
    pairs = dict.fromkeys((row["domain"], row["backbone"]) for row in data["rows"])
    for domain, backbone in pairs:
        mine = [row for row in data["rows"] if (row["domain"], row["backbone"]) == (domain, backbone)]

        def cell(way: str, rows: Sequence[Data] = mine) -> str:
            return percent([row["accuracy"] for row in rows if row["way"] == way])

        rows = [
            [strategy, *(cell(f"{strategy} at {ratio:g}") for ratio in RATIOS), cell("full at 1")]
            for strategy in STRATEGIES
        ]
        parts += [f"### {domain}, {backbone}\n", table(["strategy", *heads, "1"], rows) + "\n"]
    return parts


def _codes(data: Data) -> str:
    """Different codes per image, and the share of images whose budget is below their number."""
    rows = []
    for domain in dict.fromkeys(row["domain"] for row in data["rows"]):
        mine = [row for row in data["rows"] if row["domain"] == domain and row["strategy"] == "full"]
        codes = np.mean([row["codes"] for row in mine])
        floors = [np.mean([row["floor"] for row in mine if row["keep"] == ratio]) for ratio in RATIOS]
        rows.append([domain, f"{codes:.1f}", *(f"{100 * share:.0f} %" for share in floors)])
    return (
        "Different level-1 codes per image, and the share of images with more codes than remaining tokens "
        "(there quotas end, and the most frequent codes are dropped):\n\n"
        + table(["domain", "codes", *(f"{ratio:g}" for ratio in RATIOS)], rows)
    )


def fig5_picture(data: Data, path: Path) -> list[Path]:
    """A panel per domain and backbone, with a line per strategy."""
    from matplotlib.figure import Figure

    domains = list(dict.fromkeys(row["domain"] for row in data["rows"]))
    backbones = list(dict.fromkeys(row["backbone"] for row in data["rows"]))
    figure = Figure(figsize=(4.6 * len(backbones), 3.4 * len(domains) + 0.7), dpi=130, facecolor="white")
    axes = figure.subplots(len(domains), len(backbones), squeeze=False, sharex=True)
    for down, domain in enumerate(domains):
        for right, backbone in enumerate(backbones):
            panel = axes[down][right]
            mine = [row for row in data["rows"] if (row["domain"], row["backbone"]) == (domain, backbone)]
            for strategy, colour in COLOURS.items():
                names = [f"{strategy} at {ratio:g}" for ratio in RATIOS] + ["full at 1"]
                means = [
                    100 * np.mean([row["accuracy"] for row in mine if row["way"] == name]) for name in names
                ]
                panel.plot(
                    [*RATIOS, 1.0], means, color=colour, label=strategy, marker="o", markersize=3.5,
                    linewidth=2.4 if strategy == "full" else 1.3, zorder=3 if strategy == "full" else 2,
                )  # fmt: skip
            panel.set_title(f"{domain}, {backbone}", fontsize=10, loc="left")
            panel.grid(alpha=0.25)
            panel.tick_params(labelsize=8)
            for side in ("top", "right"):
                panel.spines[side].set_visible(False)
            if down == len(domains) - 1:
                panel.set_xlabel("keep ratio", fontsize=9)
            if right == 0:
                panel.set_ylabel("strict accuracy, %", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(COLOURS), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.6 / figure.get_size_inches()[1], 1, 1))
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    lines = lazy_image(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)  # a quarter of the bytes
    lines.save(small, format="PNG", optimize=True)
    atomic_write_bytes(path, small.getvalue())
    return [path]


def ablation_page(data: Data) -> str:
    """The ladder at 0.8 as Markdown, next to the paper's numbers."""
    rows, over = [], covers(data)
    for way in dict.fromkeys(row["way"] for row in data["rows"]):
        loss = "" if way == "no pruning" else ahead(data, way, "no pruning")
        rows.append([way, percent(averages(data, way)), loss, f"{PAPER[way]:.2f}" if way in PAPER else ""])
    parts = [
        "# The parts of pruning at keep ratio 0.8 (§4.6)\n",
        SETUP,
        "Strict accuracy in percent, mean over domains and backbones ± standard deviation over seeds; points "
        f"lost against no pruning, on the same questions [95 % interval, {over}]. The last column is the "
        "paper's, at another scale: VILA-U-7B with 256 tokens per image, average of the four benchmarks of "
        "Table 5.\n",
        table(["way", "accuracy", "lost", "paper"], rows) + "\n",
        footer(data),
    ]
    return "\n".join(parts)
