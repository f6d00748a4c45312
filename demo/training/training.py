"""How the embedded models are trained: optimisers, the learning rate, states to resume from, and the log.

Knows nothing about models or losses: train_text.py, train_facts.py, train_languages.py and train_captioner.py do.
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
"""Takes a row of the log."""
LOG_EVERY: Final = 50
CHECK_EVERY: Final = 250


@dataclass(frozen=True)
class Schedule:
    """The learning rate: linear warm-up over so many steps, constant, then from a step on linear to zero at the last."""

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
    """A model's way down: Muon for its matrices, AdamW for the embeddings, the unembedding, the biases and the gains.

    `taught` is trained beside the model, by AdamW, and is no part of it: gradients are clipped by the model's own norm.
    """

    def __init__(self, model: PreTrainedModel, schedule: Schedule, taught: torch.nn.Module | None = None) -> None:
        self.model, self.schedule = model, schedule
        self.modules = {"model": model} | ({} if taught is None else {"teacher": taught})
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        kept = {id(p) for p in matrices}
        others = [p for module in self.modules.values() for p in module.parameters() if id(p) not in kept]
        rate = schedule.rate
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.95)),
        ]
        self.done = 0
        """Steps."""
        self.began = time.process_time()  # processor time: a run that was stopped for a while did not take longer

    @property
    def seconds(self) -> float:
        """Of processor time, with what a run before took to the state it left."""
        return time.process_time() - self.began

    def descend(self) -> None:
        """One step along the gradients that were added since the last."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.rate_at(self.done)
            optimizer.step()
            optimizer.zero_grad()
        self.done += 1

    def save(self, path: Path) -> None:
        """Write the state, from which `resume` goes on."""
        path.parent.mkdir(exist_ok=True)
        state = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {"step": self.done, "seconds": self.seconds, "optimizers": [o.state_dict() for o in self.optimizers]}
        torch.save(state, path)

    def resume(self, path: Path) -> None:
        """Take over the state that a run before left, where it left one."""
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
    """All steps from the state at `path` on; a line of the log every 50, `check`'s figures and a saved state every 250.

    `add_gradients` takes a step's number, by which alone it draws the step's batch, and gives its losses by name.
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
    """Where the state of the model that goes into `folder` is kept while it is trained."""
    return Path("build") / f"{folder.name}.pt"


@contextmanager
def open_log(folder: Path, model: PreTrainedModel, **facts: Any) -> Iterator[Log]:
    """The log of the model that goes into `folder`: rows are printed, too. Its first is what was trained, with what.

    Where a run before left a state, what the log says up to that stays, and lines past it will be written again. The state
    is removed when the training has ended.
    """
    path, state = folder / "training_log.jsonl", state_path(folder)
    if state.exists():
        done = torch.load(state)["step"]
        rows = [row for row in map(json.loads, path.read_text().splitlines()) if row.get("step", 0) <= done]
        rows.append({"resumed_after_step": done, "steps": facts["steps"]})
    else:
        made_with = {"python": platform.python_version(), "torch": torch.__version__}
        rows = [made_with | {"parameters": model.num_parameters()} | facts]
    with path.open("w") as file:

        def log(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(row, flush=True)

        for row in rows:
            log(row)
        yield log
    state.unlink(missing_ok=True)
