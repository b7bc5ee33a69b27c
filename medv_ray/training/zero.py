"""DeepSpeed ZeRO-3 as an `engine.Engine`: weights, gradients and optimizer states are
partitioned over the workers.

The process group is there before (Ray Train makes it): gloo on CPU, NCCL beside GPUs. On a CPU
nothing is compiled: torch's own AdamW, and no shared-memory collectives.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from medv_ray.errors import SettingsError
from medv_ray.training.engine import MOMENTS, Read, Slice, looking
from medv_ray.training.objective import Objective, Outcome, Sample, Way
from medv_ray.training.optim import make_optimizer, parameter_groups
from medv_ray.training.private_deepspeed import weights_follow, without_shared_memory
from medv_ray.training.stages import ShardSettings, StageSettings


class ZeroEngine:
    """One worker's part of a ZeRO-3 engine."""

    def __init__(self, objective: Objective, stage: StageSettings, shard: ShardSettings) -> None:
        """Partitions the weights of `objective`, which holds them whole; every worker must have
        loaded the same. Raises SettingsError E1001 without DeepSpeed, E1004 with an unknown one."""
        deepspeed = _import_deepspeed(objective.model.device.type)
        self.rank, self.num_workers = dist.get_rank(), dist.get_world_size()
        self._stage, self._objective = stage, objective
        self._accumulation = stage.batch_size // (stage.micro_batch_size * self.num_workers)
        self._shapes = {n: tuple(p.shape) for n, p in objective.model.named_parameters()}
        config = deepspeed_config(stage, shard, self.num_workers, objective.model.device.type)
        deepspeed.zero.Init(module=objective, config_dict_or_path=config)
        newline = getattr(objective.model.model, "image_newline", None)
        if newline is not None:  # read outside the forward pass of the module that owns it
            deepspeed.zero.register_external_parameter(objective, newline)
        groups = parameter_groups(objective.model, stage)
        self._engine, *_ = deepspeed.initialize(
            model=objective, optimizer=make_optimizer(groups, stage), config=config
        )
        self._weights_follow = weights_follow(self._engine.optimizer, deepspeed.__version__)
        self._rates = [group["peak_lr"] for group in groups]

    def micro_step(self, samples: Sequence[Sample], share: float) -> Outcome:
        outcome = Outcome(*self._engine(samples))
        # DeepSpeed divides by the number of accumulated passes
        self._engine.backward(outcome.loss * (share * self._accumulation))
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the pass
        return outcome._replace(loss=outcome.loss.detach())

    def look(self, rows: Sequence[Any], way: Way) -> Any:
        # not through DeepSpeed's engine, which counts passes; its hooks stand on the module
        with looking(self._objective):
            return self._objective(rows, way)

    def step(self, factor: float) -> float:
        for group, rate in zip(self._engine.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return norm if norm >= 0 else math.nan  # DeepSpeed has -1 for what is not finite

    def sum(self, values: Tensor) -> Tensor:
        """any[n] -> float64[n] on the host, over all workers."""
        total = values.to(self._objective.model.device, torch.float64)
        dist.all_reduce(total)
        return total.cpu()

    def slices(self) -> Iterator[Slice]:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        self._make_moments()
        for name, parameter in self._parameters():
            flat = safe_get_local_fp32_param(parameter)  # parts are padded to one length
            offset = self.rank * len(flat)
            held = max(0, min(len(flat), parameter.ds_numel - offset))
            values = {"weight": flat[:held]}
            for moment in MOMENTS[self._stage.optimizer]:
                values[moment] = safe_get_local_optimizer_state(parameter, moment)[:held]
            yield Slice(name, self._shapes[name], offset, values)

    def restore(self, read: Read, num_updates: int) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        parameters = dict(self._parameters())
        for held in self.slices():
            parameter = parameters[held.name]
            for name, value in read(held).items():
                padding = parameter.partition_numel() - len(value)
                whole = torch.nn.functional.pad(value, (0, padding))
                if name == "weight":
                    safe_set_local_fp32_param(parameter, whole)
                else:
                    safe_set_local_optimizer_state(parameter, whole, name)
        zero = self._engine.optimizer
        for state in zero.optimizer.state.values():
            if "step" in state:
                state["step"].fill_(num_updates)
        self._weights_follow()

    def barrier(self) -> None:
        dist.barrier()

    def _parameters(self) -> Iterator[tuple[str, Any]]:
        """Those that learn; DeepSpeed has put fields of its own on them."""
        named = self._objective.model.named_parameters()
        return ((name, parameter) for name, parameter in named if parameter.requires_grad)

    def _make_moments(self) -> None:
        """Torch makes moments at the first update; a resumed run needs them before."""
        zero = self._engine.optimizer
        for flat in zero.fp32_partitioned_groups_flat:
            state = zero.optimizer.state[flat]
            for moment in MOMENTS[self._stage.optimizer]:
                if moment not in state:
                    state[moment] = torch.zeros_like(flat)
            if self._stage.optimizer == "adamw":
                state.setdefault("step", torch.tensor(0.0))


def deepspeed_config(
    stage: StageSettings, shard: ShardSettings, num_workers: int, device: str
) -> dict[str, Any]:
    """DeepSpeed's own settings; every value is explicit. Source of those that are not ours:
    LLaDA-V's scripts/zero3.json."""
    zero: dict[str, Any] = {
        "stage": 3,
        "contiguous_gradients": True,
        "overlap_comm": device == "cuda",
        "stage3_param_persistence_threshold": shard.persist_below,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
        "sub_group_size": 1_000_000_000,
    }
    if shard.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device == "cuda"}
    if shard.offload_params:
        zero["offload_param"] = {"device": "cpu", "pin_memory": device == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": stage.micro_batch_size,
        "gradient_accumulation_steps": stage.batch_size // (stage.micro_batch_size * num_workers),
        "gradient_clipping": stage.clip,
        "bf16": {"enabled": shard.dtype == "bfloat16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def _import_deepspeed(device: str) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device)
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError:
        raise SettingsError(
            "E1001", "shard.engine=zero3 needs DeepSpeed: pip install 'medv-ray[train]'."
        ) from None
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # at each collective: DeepSpeed calls them by names that torch 2.13 has renamed
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if device == "cpu":
        without_shared_memory(deepspeed.ops, deepspeed.__version__)
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    else:
        deepspeed.init_distributed(auto_mpi_discovery=False)
    return deepspeed
