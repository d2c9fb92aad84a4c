"""What a training run opens before it trains: settings, folder, data, the model with its own copies."""

import copy
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from craft.core.device import resolve_device
from craft.core.errors import ConfigError
from craft.core.processes import world
from craft.core.progress import say
from craft.data import Data, verify_images
from craft.data.load import as_setting, short_name
from craft.evaluation import evaluate_lvlm
from craft.formats.load import load
from craft.models.backbone import Backbone
from craft.models.llm_bits import bits_of, check_bits
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer
from craft.recipes.questions import open_data, take
from craft.training.config import AdaptConfig, LoopConfig
from craft.training.engine import join_processes, launched_with, loading_device
from craft.training.order import micro_batches
from craft.training.run_folder import RunFolder

Config = AdaptConfig | Mapping[str, Any] | str | Path | None
C = TypeVar("C", bound=AdaptConfig)


def run_settings(
    kind: type[C],
    model: str | Path | LVLM | None,
    data: str | Path | Data | None,
    out: str | Path | None,
    seed: int | None,
    max_steps: int | None,
    config: Config,
    overrides: Mapping[str, Any],
    suffix: str = "",
) -> C:
    """The config, with the arguments of `craft.adapt` on top of it.

    Args:
        kind: the class of the config.
        model, data, out, seed, max_steps, config, overrides: as `craft.adapt` takes them.
        suffix: behind the data's name in the default run folder.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """
    named = {
        "surrogate": model.name if isinstance(model, LVLM) else model and str(model),
        "data.name": data.name if isinstance(data, Data) else data and as_setting(data),
        "out": out and str(out),
        "seed": seed,
        "max_steps": max_steps,
    }
    given = {key: value for key, value in named.items() if value is not None}
    settings = kind.build(config, {**given, **overrides})
    if settings.out is None:
        place = Path("runs") / f"{short_name(settings.data.name)}{suffix}"
        settings = settings.model_copy(update={"out": str(place)})
    return settings


def run_folder(settings: LoopConfig, resume: bool, overwrite: bool) -> tuple[RunFolder, bool]:
    """The run's folder, and whether the run in it has finished and stands. Nothing is written.

    Raises:
        ConfigError: the folder is taken, the run to be continued had other settings, or a batch cannot be
            divided among the processes.
    """
    join_processes(settings.device)
    if settings.max_steps is not None and settings.epochs != LoopConfig().epochs:
        say(
            f"note: epochs={settings.epochs:g} counts for nothing beside max_steps={settings.max_steps}; "
            "--set max_steps=null goes by epochs"
        )
    size = settings.micro_batch if isinstance(settings.micro_batch, int) else None
    micro_batches(list(range(settings.batch_size)), 0, world(), size)
    run = RunFolder(str(settings.out))
    finished = run.check(settings, resume, overwrite) and run.finished
    if finished:
        say(f"the run in {run.path} is finished already")
    return run, finished


def run_data(data: str | Path | Data | None, settings: AdaptConfig, model: "Model") -> Data:
    """The data that the settings name, unless it is given.

    Raises:
        DataError: it is missing or broken.
    """
    return data if isinstance(data, Data) else open_data(settings.data, settings.seed, model)


def training_data(data: str | Path | Data | None, settings: AdaptConfig, model: "Model") -> Data:
    """`run_data`, checked before anything is trained: every image is opened once.

    Raises:
        DataError: it is missing, empty or broken.
        ConfigError: validation is to choose, and there are no samples for it.
    """
    given = run_data(data, settings, model)
    given.samples("train")
    verify_images(given)
    if settings.eval_every and not given.validation:
        raise ConfigError(f"eval_every needs validation samples, and {given.name} has none; unset it.")
    return given


def validation(data: Data, settings: AdaptConfig) -> Callable[[LVLM], float] | None:
    """What `fit` chooses by: the accuracy of an LVLM on the validation samples; None where there are none."""
    held = take(data.validation, settings.eval_limit, settings.seed)
    return (lambda lvlm: evaluate_lvlm(lvlm, held, progress=False).accuracy) if held else None


class Model:
    """Loads the model when first needed, and keeps it. Of a given LVLM the parts that train are copied; all
    of them where it goes to another device.

    Args:
        given: an LVLM, or what the settings name.
        settings: model, device, dtype and llm_bits count.
        parts: what will change: of `vision_tower`, `projector`, `llm`.

    Raises:
        ConfigError: an LLM in 4 or 8 bits is asked for, and cannot be had.
    """

    def __init__(
        self,
        given: str | Path | LVLM | None,
        settings: AdaptConfig,
        parts: Collection[str] = ("vision_tower",),
    ) -> None:
        self.given = given
        self.settings = settings
        self.parts = parts
        self.lvlm: LVLM | None = None
        _check_bits(given, settings, parts)

    def __call__(self) -> LVLM:
        """The LVLM.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        if self.lvlm is None:
            given = self.given
            if isinstance(given, LVLM):
                wanted, has = resolve_device(self.settings.device), given.device
                moves = wanted.type != has.type or wanted.index not in (None, has.index)
                self.lvlm = copy.deepcopy(given) if moves else with_own(given, self.parts)
            else:
                place = loading_device(self.settings.device)
                bits = self.settings.llm_bits
                self.lvlm = load(self.settings.surrogate, place, self.settings.dtype, llm_bits=bits)
        return self.lvlm


def _check_bits(given: str | Path | LVLM | None, settings: AdaptConfig, parts: Collection[str]) -> None:
    bits = settings.llm_bits
    if isinstance(given, LVLM):
        held = bits_of(given.backbone.llm)
        if bits not in (None, held):
            raise ConfigError(
                f"llm_bits={bits} is of a model that is loaded by name, and the given one is loaded; give "
                f"craft.load(..., llm_bits={bits})."
            )
        bits = held
    elif bits is not None:
        check_bits(bits, resolve_device(settings.device))
    if bits is None:
        return
    if "llm" in parts:
        raise ConfigError(f"llm_bits={bits} keeps the LLM frozen, and it is to train; leave llm_bits out.")
    if launched_with("FSDP") or launched_with("DEEPSPEED"):
        raise ConfigError(
            f"llm_bits={bits} is not offered with FSDP2 and ZeRO-2, which take weights apart; use DDP "
            "(configs/ddp.yaml), or leave llm_bits out."
        )


def with_own(lvlm: LVLM, parts: Collection[str]) -> LVLM:
    """The same LVLM with copies of the named parts, so that they can be trained; τ is always its own."""
    visual, backbone = lvlm.visual, lvlm.backbone

    def own(name: str, part: Any) -> Any:
        return copy.deepcopy(part) if name in parts else part

    tokenizer = VisualTokenizer(
        own("vision_tower", visual.vision_tower),
        visual.codebook,
        visual.text_encoder,
        visual.log_temperature.detach(),
        visual.prior,
        visual.aspect,
    )
    if {"projector", "llm"} & set(parts):
        backbone = Backbone(
            own("projector", backbone.projector),
            own("llm", backbone.llm),
            backbone.tokenizer,
            backbone.prompt,
            backbone.codebook_fingerprint,
            backbone.borrowed,
        )
    return LVLM(tokenizer.to(lvlm.device), backbone, lvlm.name, lvlm.origin)
