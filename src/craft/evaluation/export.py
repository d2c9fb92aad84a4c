"""Results in the formats of other tools: model-index in a Hugging Face model card, and lmms-eval's JSON."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from craft.core.errors import CheckpointError
from craft.core.files import PathLike, atomic_write_text
from craft.evaluation.metrics import Group, images_of, standard_error
from craft.evaluation.report import Report, caveats_of, merge

_METRICS = {
    "accuracy": ("exact_match", "exact match"),
    "seen": ("exact_match", "exact match, classes seen in training"),
    "unseen": ("exact_match", "exact match, unseen classes"),
    "lenient": ("accuracy", "right option by letter or text"),
}


_METADATA = ("seed", "held_out", "keep_ratio", "encoder", "caveats")


def add_to_card(readme: PathLike, reports: Sequence[Report]) -> None:
    """Write accuracies into a model card's metadata (`model-index`), in percent.

    They replace earlier results for the same data, backbone and settings. Everything else stays.

    Args:
        readme: the card, `README.md` of an adapted encoder.
        reports: the reports on one data set, one per seed; CRAFT writes their means.

    Raises:
        CheckpointError: there is no card, or its metadata cannot be read.
        ConfigError: the card cannot be written.
    """
    from huggingface_hub import EvalResult, ModelCard

    path = Path(readme)
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a model card to which results can be added: {error}") from error
    data: Any = card.data
    settings, means = reports[0].settings, merge(reports)
    arguments = {
        name: settings.get(name) for name in ("backbone", "protocol", "keep_ratio", "max_new_tokens", "limit")
    }
    arguments["caveats"] = "; ".join(caveats_of(reports)) or None
    results = [
        EvalResult(
            task_type="visual-question-answering",
            task_name="Visual question answering",
            dataset_type=str(settings.get("data")),
            dataset_name=str(settings.get("data")),
            dataset_split=settings.get("split"),
            metric_type=kind,
            metric_name=f"{name}, {settings.get('backbone')}",
            metric_value=round(100 * float(figure["mean"]), 2),
            metric_args={key: value for key, value in arguments.items() if value is not None},
        )
        for field, (kind, name) in _METRICS.items()
        if (figure := means[field]) is not None
    ]
    others = [
        old for old in data.eval_results or [] if not any(old.is_equal_except_value(new) for new in results)
    ]
    data.model_name = data.model_name or _title(card.text) or path.parent.name
    data.eval_results = [*others, *results]
    atomic_write_text(path, str(card))


def to_lmms(reports: Mapping[str, Report]) -> dict[str, Any]:
    """Results in lmms-eval's own format (`results`, `configs`, `n-samples`, ...), for its tools.

    Args:
        reports: one per task name. `exact_match` is the paper's strict accuracy.
    """
    results, configs, counts = {}, {}, {}
    for name, report in reports.items():
        count, settings, images = len(report.samples), report.settings, images_of(report.samples)
        row: dict[str, Any] = {"alias": name}
        for metric, mark, share in (
            ("exact_match", "strict", report.accuracy),
            ("lenient_match", "lenient", report.lenient),
        ):
            row[f"{metric},none"] = share
            error = standard_error(Group([sample[mark] for sample in report.samples], images))
            row[f"{metric}_stderr,none"] = "N/A" if isnan(error) else error
        results[name] = row
        configs[name] = {
            "task": name,
            "test_split": settings.get("split"),
            "output_type": "multiple_choice" if settings.get("protocol") == "options" else "generate_until",
            "num_fewshot": 0,
            "generation_kwargs": {"max_new_tokens": settings.get("max_new_tokens"), "do_sample": False},
            "metadata": {key: settings.get(key) for key in _METADATA if key in settings},
        }
        counts[name] = {"original": count, "effective": count}
    first = next(iter(reports.values()))
    return {
        "results": results,
        "group_subtasks": {name: [] for name in reports},
        "configs": configs,
        "versions": dict.fromkeys(reports, "craft"),
        "n-shot": dict.fromkeys(reports, 0),
        "higher_is_better": {n: {"exact_match": True, "lenient_match": True} for n in reports},
        "n-samples": counts,
        "config": {
            "model": "craft",
            "model_args": f"pretrained={first.settings.get('backbone')}"
            + (f",encoder={first.settings['encoder']}" if first.settings.get("encoder") else ""),
            "limit": first.settings.get("limit"),
        },
    }


def _title(text: str) -> str | None:
    return next((line[2:].strip() for line in text.splitlines() if line.startswith("# ")), None)
