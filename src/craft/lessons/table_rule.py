"""The rule by which gradients pass an LLM's token table, chosen and fitted at the start of a run. Ours.

The paper's LLMs read z̃ through a projector, which has a gradient. A token table has none
(`craft.losses.table_gradient`), so a run names the rule that replaces it, and keeps it when it is resumed.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from craft.core.errors import ConfigError
from craft.core.processes import on_main
from craft.core.progress import say
from craft.losses.table_gradient import (
    Soft,
    TableGradient,
    affine,
    affine_fit,
    identity,
    median_gap,
    soft_gain,
)
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.quantize import ResidualCodebook
from craft.training.config import LossesConfig

POOR_FIT = 0.3
"""Below this R² the affine rule warns. Ours: no table with less was tried; those of craft-tiny have 0.53."""


def check_table_rule(backbone: Backbone, codebook: ResidualCodebook, losses: LossesConfig) -> None:
    """Check `losses.table_gradient` before any work.

    Args:
        backbone: of the surrogate.
        codebook: of the surrogate.
        losses: the settings.

    Raises:
        ConfigError: the LLM reads no token table, and the setting is not the default; or the rule is
            "identity", and the LLM's width is not d; or `losses.table_top_k` is more than the codes, or set
            for another rule.
    """
    rule, top_k, dim = losses.table_gradient, losses.table_top_k, codebook.dim
    if top_k is not None and rule != "soft":
        raise ConfigError(
            f"losses.table_top_k={top_k} is for losses.table_gradient=soft, and here it is {rule}; leave it "
            "out."
        )
    if backbone.table is None:
        if rule != LossesConfig().table_gradient:
            raise ConfigError(
                f"losses.table_gradient={rule} is for LLMs that read codes from a token table (Tar, "
                "Chameleon), and this one has a projector, whose gradient needs no rule; leave it out."
            )
        return
    if top_k is not None and top_k > codebook.size:
        raise ConfigError(
            f"losses.table_top_k={top_k} is more than the {codebook.size} codes of the codebook; leave it "
            "out to use all."
        )
    width = backbone.embeddings.weight.shape[1]
    if rule == "identity" and width != dim:
        raise ConfigError(
            f"losses.table_gradient=identity needs an LLM as wide as the codebook, and they have {width} and "
            f"{dim}; use affine or soft."
        )


def set_table_rule(
    lvlm: LVLM,
    losses: LossesConfig,
    features: Callable[[], Tensor],
    earlier: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Set `lvlm.backbone.table.gradient`.

    Args:
        lvlm: the surrogate, on its device.
        losses: the settings.
        features: returns features `[B, N, d]` of some training images, from which "soft" takes its
            temperatures.
        earlier: the record of the run to resume, whose numbers are used again.

    Returns:
        The record for run.json: `rule`, and for "affine" `r2` (the share of the rows' variance that the fit
        explains), for "soft" `temperatures` and `gains` per level; `milliseconds` is the time of the rule on
        these images' tokens. None for an LLM without a token table.
    """
    table, codebook = lvlm.backbone.table, lvlm.visual.codebook
    if table is None:
        return None
    assert isinstance(codebook, ResidualCodebook)
    rows = table.rows(lvlm.backbone.embeddings).float()
    levels = codebook.levels.to(rows.device)
    record: dict[str, Any] = {"rule": losses.table_gradient}
    if losses.table_gradient == "affine":
        slope, record["r2"] = affine_fit(levels[0], rows[0])
        table.gradient = affine(slope)
        if record["r2"] < POOR_FIT:
            say(
                f"warning: an affine map of the codewords explains {record['r2']:.2f} of the token table's "
                f"variance, less than {POOR_FIT}: gradients may mislead the vision tower. Watch the loss of "
                "the answers (sal in metrics.jsonl), or use losses.table_gradient=soft."
            )
    elif losses.table_gradient == "soft":
        scales = earlier or on_main(lambda: _soft_scales(codebook, features(), losses))
        record |= {key: scales[key] for key in ("temperatures", "gains")}
        table.gradient = Soft(levels, rows, record["temperatures"], record["gains"], losses.table_top_k)
    else:
        table.gradient = identity
    record["milliseconds"] = earlier["milliseconds"] if earlier else _milliseconds(lvlm, features())
    return record


@torch.no_grad()
def _soft_scales(
    codebook: ResidualCodebook, features: Tensor, losses: LossesConfig
) -> dict[str, list[float]]:
    """Temperature and gain of each level, from the features of some images."""
    rest = features.flatten(0, -2)
    codes = codebook.quantize(rest).codes
    temperatures, gains = [], []
    for level, codewords in enumerate(codebook.levels):
        tau = losses.table_temperature * max(median_gap(rest, codewords), torch.finfo(torch.float32).tiny)
        temperatures.append(tau)
        gains.append(soft_gain(rest, codewords, tau, losses.table_top_k))
        rest = rest - codewords[codes[:, level]]
    return {"temperatures": temperatures, "gains": gains}


@torch.no_grad()
def _milliseconds(lvlm: LVLM, features: Tensor) -> float:
    """How long the rule takes on the tokens of these features; the shortest of three times."""
    rule: TableGradient | None = lvlm.backbone.table and lvlm.backbone.table.gradient
    assert rule is not None
    flat = features.flatten(0, -2)
    codes = lvlm.visual.codebook.quantize(flat).codes
    gradient = flat.new_ones(len(flat), lvlm.backbone.embeddings.weight.shape[1])
    times = []
    for _ in range(3):
        start = time.perf_counter()
        float(rule(flat, codes, gradient).sum())  # a number on the CPU: waits for a GPU
        times.append(1000 * (time.perf_counter() - start))
    return round(min(times), 3)
