"""One interface to one process, DDP and FSDP2, by accelerate."""

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
from craft.models.layers import Recompute, recompute
from craft.models.lvlm import LVLM
from craft.models.vision_tower import TowerLayer
from craft.training.config import LoopConfig
from craft.training.lesson import Objective

PATIENCE = timedelta(hours=6)
"""The time that processes wait for the main one, which alone encodes the images of a large data set. They
notice at once if it dies."""


def join_processes(device: str) -> None:
    """Join the other processes that `accelerate launch` or torchrun started, if there are any.

    Raises:
        ConfigError: the machine does not have the device, or the launcher requests DeepSpeed.
    """
    if _env_flag("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(
            "DeepSpeed is not offered: use FSDP2 (configs/fsdp2.yaml), which also divides gradients and "
            "optimiser state, or DDP (configs/ddp.yaml)."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate.state import PartialState

        PartialState(cpu=resolve_device(device).type == "cpu", timeout=PATIENCE)


def loading_device(device: str) -> str:
    """The device on which a model is loaded: with FSDP2 the CPU, so that no GPU holds the whole model."""
    return "cpu" if sharding_requested() else device


def sharding_requested() -> bool:
    """Whether the launcher requests FSDP and several processes."""
    return _env_flag("ACCELERATE_USE_FSDP") and int(os.environ.get("WORLD_SIZE", "1")) > 1


class Engine:
    """Runs the objective and the optimiser on one or several processes.

    Under FSDP2, CRAFT shards and trains a twin of the caller's model. The caller's model is not sharded, its
    backbone remains on the device where it was loaded, and `collect` copies the twin's weights to it.
    Otherwise the caller's model itself trains.

    Args:
        config: device, dtype, trackers and `optimizer.max_grad_norm` are used.
        folder: the folder of the trackers.

    Attributes:
        recompute: the parts of the layers that run again in the backward pass; initially False, none.

    Raises:
        ConfigError: the launcher requests something that is not offered, or a tracker is not installed.
    """

    def __init__(self, config: LoopConfig, folder: Path) -> None:
        self.accelerator = _accelerator(config, folder)
        self.device: torch.device = self.accelerator.device
        self.dtype = resolve_dtype(config.dtype, self.device)
        self.sharded: bool = self.accelerator.is_fsdp2
        self.recompute: Recompute = False
        self._max_grad_norm = config.optimizer.max_grad_norm
        self.objective: Any = None
        self.optimizer: Any = None
        self._whole: Objective | None = None

    def move(self, lvlm: LVLM) -> None:
        """Move a model to the device; under FSDP2, only its visual tokenizer."""
        (lvlm.visual if self.sharded else lvlm).to(self.device)

    def trainee(self, objective: Objective) -> nn.Module:
        """The module that trains: the objective itself, or under FSDP2 its twin."""
        self._whole = objective
        return _twin(objective) if self.sharded else objective

    def prepare(self, trainee: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Pass module and optimiser through accelerate, and set `objective` and `optimizer`."""
        if self.sharded:
            layers = {type(m).__name__ for m in trainee.modules() if isinstance(m, TowerLayer)}
            known = {type(m).__name__ for m in trainee.modules()}
            layers |= set(getattr(self._caller_model.backbone.llm, "_no_split_modules", None) or ()) & known
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(layers)
        buffers = [name for name, _ in trainee.named_buffers()]  # equal in all processes, and constant
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(trainee, buffers)
        with peers_needed():
            self.objective, self.optimizer = self.accelerator.prepare(trainee, optimizer)

    @property
    def model(self) -> LVLM:
        """The model that trains: the caller's, or its sharded twin."""
        return getattr(self.objective, "module", self.objective).lvlm

    @property
    def _caller_model(self) -> LVLM:
        assert self._whole is not None
        return self._whole.lvlm

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """A context for the forward and backward pass of one micro-batch.

        Processes exchange gradients in the last micro-batch of a step. FSDP2 does so in every one, because
        whole gradients would need the memory that it saves.
        """
        exchange = last or self.sharded
        synchronisation = nullcontext() if exchange else self.accelerator.no_sync(self.objective)
        with peers_needed(), synchronisation:
            yield

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of a micro-batch; `self.recompute` of its layers runs again in the backward pass."""
        with autocast(self.device, self.dtype), recompute(self.model, self.recompute):
            return self.objective(batch)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the sum of all processes' losses. (Accelerate takes their mean.)"""
        self.accelerator.backward(loss * world())

    def step(self) -> None:
        """Clip the gradient if `optimizer.max_grad_norm` is set, and take one step of the optimiser."""
        with peers_needed():
            if self._max_grad_norm is not None:
                learning = [p for group in self.optimizer.param_groups for p in group["params"]]
                self.accelerator.clip_grad_norm_(learning, self._max_grad_norm)
            self.optimizer.step()

    @torch.no_grad()
    def collect(self, everything: bool = False) -> None:
        """Copy trained weights (with `everything`, also frozen ones) from the twin to the caller's model."""
        if not self.sharded:
            return
        whole = dict(self._caller_model.named_parameters())
        with peers_needed():
            for name, shard in self.model.named_parameters():
                if everything or shard.requires_grad:
                    whole[name].copy_(_full(shard).reshape(whole[name].shape))

    def optimizer_state(self) -> dict[str, Any]:
        """The whole state dict of the optimiser; all processes must call this.

        CRAFT joins sharded tensors one at a time, in the CPU memory of the main process. The other processes
        get no moments.
        """
        plain = self.optimizer.state_dict()
        shapes = [p.shape for p in self._caller_model.parameters() if p.requires_grad]
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
        """Load a whole state dict into the optimiser."""
        if self.sharded:
            from torch.distributed.tensor import distribute_tensor

            learning = [p for group in self.optimizer.param_groups for p in group["params"]]
            shards = {}
            for index, values in state["state"].items():
                p: Any = learning[index]
                shards[index] = dict(values)
                for name in sorted(values.keys() - {"step"}):  # one order in all processes
                    whole = values[name].reshape(p.shape).to(p.device)
                    shards[index][name] = distribute_tensor(whole, p.device_mesh, p.placements)
            state = {**state, "state": shards}
        self.optimizer.load_state_dict(dict(state))

    def start_trackers(self, config: LoopConfig) -> None:
        """Start the trackers that the config names, if any, with all settings of the run."""
        if config.trackers:
            flat = {name: str(value) for name, value in config.model_dump(mode="json").items()}
            self.accelerator.init_trackers("craft", config=flat)

    def log(self, line: Mapping[str, Any], step: int) -> None:
        """Send a line of metrics.jsonl to the trackers."""
        numbers = {name: value for name, value in line.items() if name != "step"}
        self.accelerator.log(numbers, step=step)

    def close(self) -> None:
        """Close the trackers. (`end_training` would leave the group of processes too early.)"""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _accelerator(config: LoopConfig, folder: Path) -> Any:
    """Accelerate on the device of the config. `Engine.loss` sets the precision, the same way in all modes."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    if not PartialState._shared_state or PartialState().num_processes == 1:
        AcceleratorState._reset_state(True)  # an earlier run in this process may have used another device
    if device.type == "cuda" and device.index is not None and world() == 1:
        torch.cuda.set_device(device)
    plugin = _sharding(dtype) if _env_flag("ACCELERATE_USE_FSDP") and world() > 1 else None
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        fsdp_plugin=plugin,
        log_with=_trackers(config.trackers),
        project_dir=folder,
    )
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate shards only on GPUs and would fall back to DDP; torch also shards over gloo.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def _sharding(dtype: torch.dtype) -> Any:
    """FSDP2 with the launcher's settings; its units are layers, its master weights float32."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy()
    if dtype == torch.bfloat16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise ConfigError("FSDP 1 is not offered: use --fsdp_version 2, or configs/fsdp2.yaml.")
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,  # it would untie tied weights; every process loads the model
        mixed_precision_policy=policy,
    )


def _trackers(names: tuple[str, ...]) -> list[Any] | None:
    from accelerate.tracking import get_available_trackers

    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    missing = [name for name in names if name not in available]
    if missing:
        raise ConfigError(
            f"The tracker {missing[0]} is not installed: pip install {missing[0]}, or leave it out of "
            "`trackers`; CRAFT writes metrics.jsonl in any case."
        )
    return list(names) or None


def _twin(objective: nn.Module) -> nn.Module:
    """A copy of the modules, with new parameters over the same storage. (FSDP2 takes no scalars.)"""
    memo: dict[int, Any] = {id(b): b.detach() for b in objective.buffers()}
    for parameter in objective.parameters():
        data = parameter.data if parameter.ndim else parameter.data.reshape(1)
        memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    return copy.deepcopy(objective, memo)


def _full(value: Any) -> Any:
    """A sharded tensor as a whole one; any other value unchanged."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _env_flag(name: str) -> bool:
    """Whether an environment variable is "true"."""
    return os.environ.get(name, "false").lower() == "true"
