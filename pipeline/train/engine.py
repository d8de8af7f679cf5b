"""TrainingEngine: a model under DeepSpeed with the average of its weights, its checkpoints and its export."""

from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from ..errors import JobFailed
from ..settings import TrainSettings
from .checkpoint import Saved
from .deepspeed.engine import start_engine
from .deepspeed.state import Ema, count_updates, full_state, gather, optimizer_keys, put_back, weights
from .optimisation import learning_rate, set_learning_rate
from .ranks import RankInfo


class TrainingEngine:
    """A model in training after `steps` steps. Every rank makes one, and calls each method at the same time."""

    def __init__(self, model: nn.Module, train: TrainSettings, rank: RankInfo, saved: Saved | None = None) -> None:
        """Start from the weights that `model` has or, with their optimizer state, from those of a checkpoint.

        Raises JobFailed for the checkpoint of another optimizer.
        """
        if saved and not saved.made_by(train.optimizer):
            raise JobFailed(
                f"train.optimizer = {train.optimizer}: the checkpoint of step {saved.step} was made by another one; "
                "delete the run's folder, or choose another --run.name"
            )
        self.train, self.rank, self.steps = train, rank, saved.step if saved else 0
        # an export takes buffers as they are before bf16 rounds them, except those that a network makes anew
        stored = model.state_dict().keys()
        self._buffers = {name: value.clone() for name, value in model.named_buffers() if name in stored}
        if saved:  # buffers and frozen weights are made anew
            model.load_state_dict(weights(saved.tensors), strict=False)
        self.network: Any = start_engine(model, train, rank.workers, rank.device)
        self._ema = Ema(self.network, train.ema_decay) if train.ema_decay else None
        if saved:
            put_back(self.network, saved.tensors, optimizer_keys(train.optimizer), saved.updates)
            if self._ema:
                self._ema.put_back(self.network, saved.tensors)

    def set_learning_rate(self) -> float:
        """Set and return the learning rate of the next step."""
        rate = learning_rate(self.steps, self.train)
        set_learning_rate(self.network.optimizer.param_groups, rate)
        return rate

    def end_step(self) -> None:
        """Count the step that the optimizer has just made, and average its weights."""
        self.steps += 1
        if self._ema:
            self._ema.update(self.steps)

    def gradient_norm(self) -> float | None:
        """Norm of the last step's gradient before clipping; None before DeepSpeed knows it."""
        norm = self.network.get_global_grad_norm()
        return None if norm is None else float(norm)

    def share(self) -> Saved:
        """This rank's part of a checkpoint, copied to CPU memory."""
        tensors = gather(self.network, optimizer_keys(self.train.optimizer), self.rank.rank, self.rank.workers)
        if self._ema:
            tensors |= self._ema.gather(self.network, self.rank.rank, self.rank.workers)
        return Saved(self.steps, count_updates(self.network), tensors)

    def export_state(self) -> dict[str, Tensor]:
        """The trained weights, averaged where train.ema_decay says so, and buffers: float32 on the CPU."""
        with self._ema.in_place() if self._ema else nullcontext():
            return full_state(self.network, self._buffers)
