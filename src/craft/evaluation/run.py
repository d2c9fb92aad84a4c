"""Ask an LVLM every question of a list, and mark the answers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from craft.core.progress import track
from craft.core.tokens import VisionTokens
from craft.data import Sample
from craft.evaluation.matching import lenient, strict, unparseable
from craft.evaluation.report import Report
from craft.models.lvlm import LVLM


def evaluate_lvlm(
    lvlm: LVLM,
    samples: Sequence[Sample],
    batch_size: int = 64,
    max_new_tokens: int = 5,
    keep_ratio: float = 1.0,
    settings: dict[str, Any] | None = None,
    progress: bool = True,
    keep_positions: bool = False,
) -> Report:
    """Greedy answers to all samples, marked (§4.1).

    Every distinct image is encoded once; questions go in batches of similar length, and results come back in
    the order of `samples`.

    Args:
        lvlm: the model.
        samples: with questions written.
        batch_size: questions, and images, per forward pass.
        max_new_tokens: the cap on an answer (§4.1: 5).
        keep_ratio: share of visual tokens that the LLM sees, by the code prior `lvlm.visual.prior`.
        settings: recorded in the report.
        progress: show it.
        keep_positions: as `LVLM.answer` takes it.

    Raises:
        DataError: an image cannot be read.
        CraftError: `keep_ratio` is out of range, or there is no code prior for it.
    """
    lvlm.check_keep_ratio(keep_ratio)
    codes = CodeTable(lvlm, samples, batch_size, progress)
    prompts = [sample.prompt() for sample in samples]
    lengths = [len(lvlm.backbone.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    order = sorted(range(len(samples)), key=lambda index: lengths[index])
    starts = range(0, len(order), batch_size)
    answers: dict[int, str] = {}
    for start in track(starts, f"asking {lvlm.name}") if progress else starts:
        chosen = order[start : start + batch_size]
        tokens = codes.tokens([samples[index] for index in chosen])
        asked = [prompts[index] for index in chosen]
        said = lvlm.answer(
            tokens,
            asked,
            max_new_tokens=max_new_tokens,
            keep_ratio=keep_ratio,
            batch_size=batch_size,
            keep_positions=keep_positions,
        )
        answers |= dict(zip(chosen, said, strict=True))
    rows = [_row(sample, prompts[index], answers[index]) for index, sample in enumerate(samples)]
    told = {"keep_ratio": keep_ratio, "keep_positions": keep_positions, "max_new_tokens": max_new_tokens}
    return Report.of(rows, {**told, **(settings or {})})


def _row(sample: Sample, prompt: str, prediction: str) -> dict[str, Any]:
    return {
        "id": sample.id,
        "prompt": prompt,
        "answer": sample.answer,
        "prediction": prediction,
        "strict": strict(prediction, sample.answer),
        "lenient": lenient(prediction, sample),
        "unparseable": unparseable(prediction, sample),
        "seen": sample.seen,
        "label": sample.label,
        "correct": sample.answer_text,
        "choices": list(sample.choices),
    }


class CodeTable:
    """Codes and residuals of every distinct image: all that the LLM and pruning need, in little memory.

    Args:
        lvlm: its visual tokenizer encodes.
        samples: whose images.
        batch_size: images per forward pass.
        progress: show it.

    Raises:
        DataError: an image cannot be read.
    """

    def __init__(
        self, lvlm: LVLM, samples: Sequence[Sample], batch_size: int = 64, progress: bool = True
    ) -> None:
        self.visual = lvlm.visual
        distinct: dict[Any, Any] = {}
        for sample in samples:
            distinct.setdefault(_key(sample), sample.image)
        self.rows = {key: row for row, key in enumerate(distinct)}
        sources = list(distinct.values())
        starts = range(0, len(sources), batch_size)
        codes, residuals = [], []
        for start in track(starts, "encoding images") if progress and len(starts) > 1 else starts:
            tokens = lvlm.encode(sources[start : start + batch_size], batch_size=batch_size)
            codes.append(tokens.codes)
            residuals.append(tokens.residual)
        self.codes = torch.cat(codes) if codes else torch.zeros(0, 0, 0, dtype=torch.long)
        self.residuals = torch.cat(residuals) if residuals else torch.zeros(0, 0)

    def tokens(self, samples: Sequence[Sample]) -> VisionTokens:
        """The samples' visual tokens, codeword sums looked up by code; `features` are those sums too."""
        device = self.codes.device
        rows: Tensor = torch.tensor([self.rows[_key(sample)] for sample in samples], device=device)
        codes = self.codes[rows]
        quantized = self.visual.codebook.lookup(codes)
        batch, count = codes.shape[:2]
        return VisionTokens(
            features=quantized,
            codes=codes,
            quantized=quantized,
            residual=self.residuals[rows],
            positions=torch.arange(count, device=device).expand(batch, count),
            grid=self.visual.grid,
        )


def _key(sample: Sample) -> Any:
    return sample.image if isinstance(sample.image, str) else id(sample.image)
