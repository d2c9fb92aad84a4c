"""Accelerate, and what has to be said to it: one process, DDP and FSDP2 behind one face."""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from craft.core.device import autocast, resolve_device, resolve_dtype
from craft.core.errors import ConfigError
from craft.core.processes import is_main, peers_needed, world
from craft.models.lvlm import LVLM
from craft.models.recompute import Recompute, recompute
from craft.models.vision_tower import TowerLayer
from craft.training.config import LoopConfig

PATIENCE = timedelta(hours=6)
"""How long processes wait for the main one, which reads and encodes all images of a large data set alone. One
that dies is noticed at once."""


def join_processes(device: str) -> None:
    """Join the processes that `accelerate launch` or torchrun started together with this one, if they did.

    Raises:
        ConfigError: the machine does not have the device, or the launcher asks for DeepSpeed.
    """
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(
            "DeepSpeed is not offered: use FSDP2 (configs/fsdp2.yaml), which divides gradients and optimiser "
            "state too, or DDP (configs/ddp.yaml)."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate.state import PartialState

        PartialState(cpu=resolve_device(device).type == "cpu", timeout=PATIENCE)


def loading_device(device: str) -> str:
    """Where a model is loaded: what will be sharded (FSDP2) must not have been whole on a device before."""
    return "cpu" if sharding_asked() else device


def sharding_asked() -> bool:
    """Whether the launcher asks for FSDP and for several processes."""
    return _asked("ACCELERATE_USE_FSDP") and int(os.environ.get("WORLD_SIZE", "1")) > 1


class Engine:
    """What trains the objective, and where.

    Under FSDP2 the model that the caller gave stays whole, its backbone where it was loaded; a twin of it is
    sharded and trains, and `collect` copies the twin's weights back. Otherwise the model itself trains.

    Args:
        config: device, dtype and trackers count.
        folder: where trackers write.

    Attributes:
        again: what of the layers runs again in the backward pass; nothing, unless set.

    Raises:
        ConfigError: the launcher asks for something that is not offered, or a tracker is not installed.
    """

    def __init__(self, config: LoopConfig, folder: Path) -> None:
        self.accelerator = _accelerator(config, folder)
        self.device: torch.device = self.accelerator.device
        self.dtype = resolve_dtype(config.dtype, self.device)
        self.sharded: bool = self.accelerator.is_fsdp2
        self.again: Recompute = False
        self._max_grad_norm = config.optimizer.max_grad_norm
        self.objective: Any = None
        self.optimizer: Any = None
        self._whole: Any = None

    def place(self, lvlm: LVLM) -> None:
        """Move a model to where it computes."""
        (lvlm.visual if self.sharded else lvlm).to(self.device)

    def trainee(self, objective: nn.Module) -> nn.Module:
        """The module that will train: the objective itself, or its twin under FSDP2."""
        self._whole = objective
        return _twin(objective) if self.sharded else objective

    def prepare(self, trainee: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Hand module and optimiser to accelerate; `objective` and `optimizer` are what it returns."""
        if self.sharded:
            layers = {type(m).__name__ for m in trainee.modules() if isinstance(m, TowerLayer)}
            known = {type(m).__name__ for m in trainee.modules()}
            layers |= set(getattr(self._whole.lvlm.backbone.llm, "_no_split_modules", None) or ()) & known
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(layers)
        buffers = [name for name, _ in trainee.named_buffers()]  # alike everywhere, and never changed
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(trainee, buffers)
        with peers_needed():
            self.objective, self.optimizer = self.accelerator.prepare(trainee, optimizer)

    @property
    def model(self) -> LVLM:
        """The model that trains: the caller's, or the sharded twin."""
        return getattr(self.objective, "module", self.objective).lvlm

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """For one micro-batch, forward and backward: gradients are exchanged in the last of a step.

        FSDP2 exchanges them each time, because whole gradients would need the memory that it saves.
        """
        alone = last or self.sharded
        waiting = nullcontext() if alone else self.accelerator.no_sync(self.objective)
        with peers_needed(), waiting:
            yield

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of a micro-batch; `self.again` of its layers runs again in the backward pass."""
        with autocast(self.device, self.dtype), recompute(self.model, self.again):
            return self.objective(batch)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss that is a sum over processes (accelerate takes their mean)."""
        self.accelerator.backward(loss * world())

    def step(self) -> None:
        """One step of the optimiser; before it the gradient is clipped if the settings name a norm."""
        with peers_needed():
            if self._max_grad_norm is not None:
                learning = [p for group in self.optimizer.param_groups for p in group["params"]]
                self.accelerator.clip_grad_norm_(learning, self._max_grad_norm)
            self.optimizer.step()

    @torch.no_grad()
    def collect(self, everything: bool = False) -> None:
        """Copy what was trained (or everything, frozen parts too) from the twin to the whole model."""
        if not self.sharded:
            return
        whole = dict(self._whole.lvlm.named_parameters())
        with peers_needed():
            for name, shard in self.model.named_parameters():
                if everything or shard.requires_grad:
                    whole[name].copy_(_full(shard).reshape(whole[name].shape))

    def optimizer_state(self) -> dict[str, Any]:
        """The optimiser's state dict, whole; all processes take part. What is sharded is put together one
        tensor at a time, in the main process's CPU memory; the others get no moments."""
        plain = self.optimizer.state_dict()
        shapes = [p.shape for p in self._whole.lvlm.parameters() if p.requires_grad]
        state: dict[int, dict[str, Any]] = {}
        with peers_needed():
            for index, values in plain["state"].items():
                for name, value in values.items():
                    whole = _full(value)
                    if self.sharded:
                        whole = whole.to("cpu") if is_main() else None
                    if whole is not None:
                        shape = shapes[index] if name != "step" else ()
                        state.setdefault(index, {})[name] = whole.reshape(shape)
        return {**plain, "state": state}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put a whole state dict into the optimiser."""
        if self.sharded:
            from torch.distributed.tensor import distribute_tensor

            learning = [p for group in self.optimizer.param_groups for p in group["params"]]
            shards = {}
            for index, values in state["state"].items():
                p: Any = learning[index]
                shards[index] = {
                    name: value
                    if name == "step"
                    else distribute_tensor(value.reshape(p.shape).to(p.device), p.device_mesh, p.placements)
                    for name, value in values.items()
                }
            state = {**state, "state": shards}
        self.optimizer.load_state_dict(dict(state))

    def start_trackers(self, config: LoopConfig) -> None:
        """Tell the trackers of the config, where there are any, what run this is."""
        if config.trackers:
            flat = {name: str(value) for name, value in config.model_dump(mode="json").items()}
            self.accelerator.init_trackers("craft", config=flat)

    def log(self, line: Mapping[str, Any], step: int) -> None:
        """Give a line of metrics.jsonl to the trackers."""
        numbers = {name: value for name, value in line.items() if name != "step"}
        self.accelerator.log(numbers, step=step)

    def close(self) -> None:
        """Close the trackers. (`end_training` would part from the other processes too early.)"""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _accelerator(config: LoopConfig, folder: Path) -> Any:
    """Accelerate, on the device that the config names; precision is `Engine.loss`'s, alike in all modes."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    if not PartialState._shared_state or PartialState().num_processes == 1:
        AcceleratorState._reset_state(True)  # an earlier run in this process may have had another device
    if device.type == "cuda" and device.index is not None and world() == 1:
        torch.cuda.set_device(device)
    plugin = _sharding(dtype) if _asked("ACCELERATE_USE_FSDP") and world() > 1 else None
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        fsdp_plugin=plugin,
        log_with=_trackers(config.trackers),
        project_dir=folder,
    )
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate shards on GPUs only and would fall back to DDP; torch shards over gloo as well.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def _sharding(dtype: torch.dtype) -> Any:
    """FSDP2 with the launcher's settings, in units of one layer; the master weights are float32."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy()
    if dtype == torch.bfloat16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise ConfigError("FSDP 1 is not offered: say --fsdp_version 2, or take configs/fsdp2.yaml.")
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,  # it would untie tied weights; every process has loaded the model
        mixed_precision_policy=policy,
    )


def _trackers(names: tuple[str, ...]) -> list[Any] | None:
    from accelerate.tracking import get_available_trackers

    there = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    absent = [name for name in names if name not in there]
    if absent:
        raise ConfigError(
            f"The tracker {absent[0]} is not installed: pip install {absent[0]}, or leave it out of "
            "`trackers`; metrics.jsonl is written in any case."
        )
    return list(names) or None


def _twin(objective: nn.Module) -> nn.Module:
    """A copy of the structure, its parameters new objects over the same storage (FSDP2 takes no scalars)."""
    memo: dict[int, Any] = {id(b): b.detach() for b in objective.buffers()}
    for parameter in objective.parameters():
        data = parameter.data if parameter.ndim else parameter.data.reshape(1)
        memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    return copy.deepcopy(objective, memo)


def _full(value: Any) -> Any:
    """A sharded tensor in full; anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _asked(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
