"""How the embedded models are trained: optimisers, the learning rate, states to resume from, and the log.

Models and losses are in train_text.py, train_facts.py, train_languages.py and train_captioner.py.
"""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

Log = Callable[[dict[str, Any]], None]
"""A function that writes one row of the log."""
LOG_EVERY: Final = 50
CHECK_EVERY: Final = 250


@dataclass(frozen=True)
class Schedule:
    """The learning rate: linear warm-up over `warm_up` steps, constant, from step `decay_from` on linear to zero at the end."""

    rate: float
    n_steps: int
    warm_up: int
    decay_from: int

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warm_up:
            return self.rate * ((step + 1) / self.warm_up)
        if step < self.decay_from:
            return self.rate
        return self.rate * ((self.n_steps - step) / (self.n_steps - self.decay_from))


class Training:
    """A model and its optimisers: Muon for its matrices, AdamW for the embeddings, the unembedding, the biases and the gains.

    `teacher` is trained beside the model, by AdamW, and is not part of it: gradients are clipped by the model's own norm.
    """

    def __init__(self, model: PreTrainedModel, schedule: Schedule, teacher: torch.nn.Module | None = None) -> None:
        self.model, self.schedule = model, schedule
        self.modules = {"model": model} | ({} if teacher is None else {"teacher": teacher})
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        matrix_ids = {id(p) for p in matrices}
        others = [p for module in self.modules.values() for p in module.parameters() if id(p) not in matrix_ids]
        rate = schedule.rate
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.95)),
        ]
        self.done = 0
        """Number of steps done."""
        self.began = time.process_time()  # processor time: a run that was stopped for a while did not take longer

    @property
    def seconds(self) -> float:
        """Processor time in seconds, including that of earlier runs up to the state that this one resumed from."""
        return time.process_time() - self.began

    def descend(self) -> None:
        """One optimiser step along the gradients accumulated since the last."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.rate_at(self.done)
            optimizer.step()
            optimizer.zero_grad()
        self.done += 1

    def save(self, path: Path) -> None:
        """Write the state from which `resume` continues."""
        path.parent.mkdir(exist_ok=True)
        state = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {"step": self.done, "seconds": self.seconds, "optimizers": [o.state_dict() for o in self.optimizers]}
        torch.save(state, path)

    def resume(self, path: Path) -> None:
        """Load the state of an earlier run, if there is one."""
        if not path.exists():
            return
        state = torch.load(path)
        self.done, self.began = state["step"], time.process_time() - state["seconds"]
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def train(
    training: Training,
    path: Path,
    add_gradients: Callable[[int], dict[str, float]],
    check: Callable[[], dict[str, float]],
    log: Log,
) -> None:
    """All steps from the state at `path` on; one line of the log every 50, `check`'s figures and a saved state every 250.

    `add_gradients` takes a step's number, on which alone the step's batch depends, and returns its losses by name.
    """
    training.resume(path)
    losses: dict[str, list[float]] = defaultdict(list)
    while training.done < training.schedule.n_steps:
        for name, loss in add_gradients(training.done).items():
            losses[name].append(loss)
        training.descend()
        if training.done % LOG_EVERY == 0:
            row: dict[str, Any] = {"step": training.done, "cpu_seconds": round(training.seconds)}
            row["loss"] = {name: round(sum(values) / len(values), 4) for name, values in losses.items()}
            losses.clear()
            if training.done % CHECK_EVERY == 0:
                row["held_out"] = check()
                training.save(path)
            log(row)


def state_path(folder: Path) -> Path:
    """Path of the training state of the model that goes into `folder`."""
    return Path("build") / f"{folder.name}.pt"


@contextmanager
def open_log(folder: Path, model: PreTrainedModel, **facts: Any) -> Iterator[Log]:
    """The log of the model that goes into `folder`, also printed. Its first row has the versions and the settings.

    If an earlier run left a state, the log's rows up to that state stay and later ones are written again. The state is removed
    when the training has ended.
    """
    path, state = folder / "training_log.jsonl", state_path(folder)
    if state.exists():
        done = torch.load(state)["step"]
        rows = [row for row in map(json.loads, path.read_text().splitlines()) if row.get("step", 0) <= done]
        rows.append({"resumed_after_step": done, "steps": facts["steps"]})
    else:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        rows = [versions | {"parameters": model.num_parameters()} | facts]
    with path.open("w") as file:

        def log(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(row, flush=True)

        for row in rows:
            log(row)
        yield log
    state.unlink(missing_ok=True)
