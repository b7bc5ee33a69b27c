"""What the loop asks of an engine, and the plain one: a torch optimizer in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from medv_ray.training.objective import Objective, Outcome, Sample, Way
from medv_ray.training.optim import make_optimizer, parameter_groups
from medv_ray.training.stages import StageSettings

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ()}
"""What an optimizer keeps of each parameter, by torch's names."""


class Slice(NamedTuple):
    """The part of a parameter that a worker holds, flattened."""

    name: str
    shape: tuple[int, ...]
    offset: int
    """Of the first element that is held, in the flattened parameter."""
    values: dict[str, Tensor]
    """`weight` and the optimizer's moments, float32[n] each. Not to be changed."""


Read = Callable[[Slice], Mapping[str, Tensor]]
"""What a slice's values are to be, float32[n] each."""


class Engine(Protocol):
    """Weights, gradients and optimizer of a stage, on one or on all workers."""

    rank: int
    num_workers: int

    def micro_step(self, samples: Sequence[Sample], share: float) -> Outcome:
        """Forward and backward pass. `share` is the weight of this micro-batch among the worker's
        own; the shares of a step add up to 1."""

    def look(self, rows: Sequence[Any], way: Way) -> Any:
        """What `Objective.forward` makes, without dropout; nothing is learnt or changed. All
        workers call it together, with as many rows."""

    def step(self, factor: float) -> float:
        """Update the weights with `factor` times the peak learning rates; the gradient's norm
        before clipping, over all parameters and workers."""

    def sum(self, values: Tensor) -> Tensor:
        """float64[...], the sum over all workers."""

    def slices(self) -> Iterator[Slice]:
        """Each trainable parameter, in one order on every worker."""

    def restore(self, read: Read, num_updates: int) -> None:
        """Set weights and moments to what they were after that many updates."""

    def barrier(self) -> None:
        """Wait for all workers."""


@contextmanager
def looking(objective: Objective) -> Iterator[None]:
    """Without gradients and dropout."""
    objective.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        objective.train()


class PlainEngine:
    """One process, one optimizer. Weights stay float32; `dtype` is what is computed in."""

    rank, num_workers = 0, 1

    def __init__(
        self, objective: Objective, stage: StageSettings, dtype: torch.dtype = torch.float32
    ) -> None:
        self._objective, self._stage, self._dtype = objective, stage, dtype
        self._optimizer = make_optimizer(parameter_groups(objective.model, stage), stage)
        self._learn = [p for p in objective.parameters() if p.requires_grad]

    def micro_step(self, samples: Sequence[Sample], share: float) -> Outcome:
        with self._autocast():
            outcome = Outcome(*self._objective(samples))
        (outcome.loss * share).backward()  # type: ignore[no-untyped-call]
        return outcome._replace(loss=outcome.loss.detach())

    def look(self, rows: Sequence[Any], way: Way) -> Any:
        with looking(self._objective), self._autocast():
            return self._objective(rows, way)

    def _autocast(self) -> torch.autocast:
        device = self._objective.model.device.type
        return torch.autocast(device, self._dtype, enabled=self._dtype != torch.float32)

    def step(self, factor: float) -> float:
        # not foreach's order of additions, which depends on the number of tensors
        norm = torch.nn.utils.clip_grad_norm_(self._learn, self._stage.clip or float("inf"))
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    def sum(self, values: Tensor) -> Tensor:
        """any[n] -> float64[n], of this one worker."""
        return values.double()

    def slices(self) -> Iterator[Slice]:
        for name, parameter in self._objective.model.named_parameters():
            if not parameter.requires_grad:
                continue
            values = {"weight": parameter.detach().flatten()}
            state = self._optimizer.state[parameter]
            for moment in MOMENTS[self._stage.optimizer]:
                if moment not in state:
                    state[moment] = torch.zeros_like(parameter)
                values[moment] = state[moment].flatten()
            if self._stage.optimizer == "adamw":
                state.setdefault("step", torch.tensor(0.0))
            yield Slice(name, tuple(parameter.shape), 0, values)

    def restore(self, read: Read, num_updates: int) -> None:
        for held in self.slices():
            for name, value in read(held).items():
                held.values[name].copy_(value)
        for state in self._optimizer.state.values():
            if "step" in state:
                state["step"].fill_(num_updates)

    def barrier(self) -> None:
        pass
