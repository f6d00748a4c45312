"""Patching: where a layer's activations enter its output projection, and passes in which rows of them are replaced.

What the cached and the full path of integrated gradients share: the modules to hook, which rows run together, and the sums of
their gradients.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from actstore.engine.models import families
from actstore.engine.models.names import HEAD_SITES
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.sites import Features

    Arguments = tuple[tuple[Any, ...], dict[str, Any]]
    Hook = Callable[[int, tuple[Any, ...], dict[str, Any]], Arguments | None]


def tolerance(dtype: torch.dtype) -> float:
    """How far the same pass computed in two ways may differ, relative: ε^(2/3).

    That is 2.4e-5 in float32, 0.01 in float16, 0.04 in bfloat16: well above rounding, well below a key too few.
    """
    return float(torch.finfo(dtype).eps ** (2 / 3))


@dataclass(frozen=True)
class PatchPoint:
    """Where the activations of one layer can be replaced, and the block they belong to."""

    layer: int
    neurons: int
    owner: str  # the module that is called with them
    run: int  # in which of its runs in a pass
    block: int  # its index among the architecture's blocks, in order of execution
    side: Literal["input", "output"] = "input"  # whether the owner is called with them or returns them
    features: Features | None = None  # which entries of that tensor's last axis they are; all where None

    def take(self, values: Tensor) -> Tensor:
        """The activations [row, neuron] among rows of the tensor."""
        return values if self.features is None else self.features.take(values)

    def put(self, rows: Tensor, activations: Tensor) -> None:
        """Write activations [row, …, neuron] into rows of the tensor, in place."""
        if self.features is None or len(self.features) == rows.shape[-1]:
            rows.copy_(activations)
        else:
            rows[..., self.features.index(rows.device)] = activations.to(rows.dtype)


def patch_points(model: LoadedModel, layers: Sequence[int] | None, site: str = "mlp.post") -> list[PatchPoint]:
    """The patch points of `layers` at a site, ascending; of all layers of the text stack that have it where None.

    The site is `mlp.post` or one of attention's projections. Raises `InvalidInputError` for layers that do not exist or lack
    it, and for those whose activations no module is handed: routed experts see the tokens routed to them only, so that the path
    from 0 to ā is not one function of their neurons.
    """
    if site != "mlp.post":
        return _head_points(model, layers, site)
    specs = model.spec.layers
    numbers = model.spec.part_layers("language") if layers is None else sorted(set(layers))
    points = []
    for number in numbers:
        layer = model.layer(number)
        if not layer.projection.hooked:
            kind = "a routed expert" if specs[number].expert is not None else "a projection inside another module"
            dense = [spec.layer for spec in specs if model.layer(spec.layer).projection.hooked]
            raise InvalidInputError(
                f"expected layers with a dense output projection of their own, and layer {number} of {model.spec.name}"
                f" ({specs[number].module}) is {kind}; "
                + (f"choose `layers` among {dense}" if dense else "choose another model")
            )
        projection = layer.projection
        points.append(PatchPoint(number, projection.neurons, projection.owner, projection.run, layer.position))
    return points


def _head_points(model: LoadedModel, layers: Sequence[int] | None, site: str) -> list[PatchPoint]:
    spec = model.spec
    if site not in HEAD_SITES:
        raise InvalidInputError(
            f"Activations are replaced at mlp.post, or at {', '.join(HEAD_SITES)}, found {site!r}. Check `site`."
        )
    having = [layer for layer in spec.layers_of(site) if layer in spec.part_layers("language")]
    points = []
    for number in having if layers is None else sorted(set(layers)):
        if number not in having:
            raise InvalidInputError(
                f"Layer {number} of {spec.name} has no site {site!r}. Layers with it: {', '.join(map(str, having)) or 'none'}. "
                "Check `layers` and `site`."
            )
        layer = model.layer(number)
        point = layer.hook_points[site]
        width = spec.width(number, site)
        points.append(PatchPoint(number, width, point.module, point.run, layer.position, point.side, point.features))
    if not points:
        raise InvalidInputError(f"No layer of {spec.name} has the site {site!r}. Check `site`.")
    return points


@dataclass(frozen=True)
class Rows:
    """The rows of one layer in a pass: steps `first` … `last` (1-based, inclusive) of `n_steps` from 0 to ā."""

    point: PatchPoint
    first: int
    last: int
    n_steps: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    @property
    def ends(self) -> bool:
        """Whether the last row is ā itself."""
        return self.last == self.n_steps

    def scaled(self, activations: Tensor) -> Tensor:
        """The rows [step, neuron] `(k / n_steps) · ā` in float32 (or float64), a leaf whose gradient can be taken.

        Of activations [position, neuron] they are [step, position, neuron].
        """
        wide = activations.detach().to(torch.promote_types(activations.dtype, torch.float32))
        steps = torch.arange(self.first, self.last + 1, dtype=wide.dtype, device=wide.device) / self.n_steps
        return (steps.view(-1, *[1] * wide.dim()) * wide).requires_grad_()


def split_rows(points: Sequence[PatchPoint], n_steps: int, max_rows: int) -> Iterator[list[Rows]]:
    """All (layer, step) rows in that order, divided into passes of at most `max_rows`."""
    chunk: list[Rows] = []
    free = max_rows
    for point in points:
        step = 1
        while step <= n_steps:
            last = min(n_steps, step + free - 1)
            chunk.append(Rows(point, step, last, n_steps))
            free -= last - step + 1
            step = last + 1
            if not free:
                yield chunk
                chunk, free = [], max_rows
    if chunk:
        yield chunk


@dataclass
class Sums:
    """What the passes of one prompt add up to."""

    probability: float
    activations: dict[int, Tensor]  # layer → ā [neuron]
    gradients: dict[int, Tensor]  # layer → Σ over steps of ∂P/∂a [neuron]
    last_gradients: dict[int, Tensor]  # layer → ∂P/∂a at ā [neuron]

    def add(self, rows: Sequence[Rows], leaves: Sequence[Tensor], log_p: Tensor) -> None:
        """Add the gradients of P at `leaves`; `log_p` holds the log probability of their rows, in that order.

        Rows do not see one another, so one backward pass over a sum over rows gives each its own gradient. It is taken of
        log P and multiplied by P afterwards: in half precision the gradient of a small probability would vanish on its way.
        """
        gradients = torch.autograd.grad(log_p.sum(), list(leaves))
        probabilities = torch.split(log_p.detach().exp(), [len(entry) for entry in rows])
        for entry, gradient, p in zip(rows, gradients, probabilities, strict=True):
            gradient = gradient * p.view(-1, *[1] * (gradient.dim() - 1)).to(gradient.dtype)
            layer = entry.point.layer
            total = gradient.sum(0)
            self.gradients[layer] = self.gradients[layer] + total if layer in self.gradients else total
            if entry.ends:
                self.last_gradients[layer] = gradient[-1]


def log_probability(logits: Tensor, target: int) -> Tensor:
    """The log probability of the target in every row of logits [row, vocabulary], in float32 or wider."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide[:, target] - wide.logsumexp(-1)


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[Counter[str]]:
    """While open, `hooks[path](run, args, kwargs)` is called before each run of a module, and may return other arguments.

    Runs are counted from the opening; clear the counter yielded before another pass.
    """
    runs: Counter[str] = Counter()
    with ExitStack() as stack:
        for path, hook in hooks.items():

            def before(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path, hook: Hook = hook
            ) -> Any:
                run = runs[path]
                runs[path] += 1
                return hook(run, args, kwargs)

            handle = model.get_submodule(path).register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
        yield runs


@contextmanager
def returning(model: nn.Module, edits: Mapping[str, Mapping[int, Callable[[Tensor], Tensor]]]) -> Iterator[None]:
    """While open, what run `run` of a module returns, one tensor, goes through `edits[path][run]`; runs count from here."""
    runs: Counter[str] = Counter()
    with ExitStack() as stack:
        for path, by_run in edits.items():

            def after(
                _module: nn.Module,
                _args: Any,
                output: Tensor,
                path: str = path,
                by_run: Mapping[int, Callable[[Tensor], Tensor]] = by_run,
            ) -> Tensor | None:
                run = runs[path]
                runs[path] += 1
                return by_run[run](output) if run in by_run else None

            handle = model.get_submodule(path).register_forward_hook(after)
            stack.callback(handle.remove)
        yield


@contextmanager
def weights_without_gradients(model: nn.Module) -> Iterator[None]:
    """While open, no parameter requires a gradient: a pass then keeps nothing that only weight gradients need."""
    changed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


def head_hook(model: LoadedModel, position: int, n_positions: int) -> dict[str, Hook]:
    """A hook that lets the unembedding see one position only, where it is a module that is called with all of them."""
    head = model.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    path = next((path for path, module in model.model.named_modules() if module is head), None)

    def select(_run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and args[0].dim() == 3 and args[0].shape[1] == n_positions > 1:
            return (args[0][:, position : position + 1], *args[1:]), kwargs
        return None

    return {} if path is None else {path: select}


def at_position(values: Tensor, n_windows: int, position: int, n_positions: int, model_type: str) -> Tensor:
    """The rows [window, …] of `position`, a view of values whose leading axes are window and position."""
    by_window = values.reshape(n_windows, -1, values.shape[-1])
    if by_window.shape[1] == 1:
        return by_window[:, 0]
    return by_window[:, _before_tokens(by_window, n_positions, model_type) + position]


def of_sequence(values: Tensor, n_windows: int, n_positions: int, model_type: str) -> Tensor:
    """The rows [window, position, …] of a window's tokens, a view as `at_position` gives of one."""
    by_window = values.reshape(n_windows, -1, values.shape[-1])
    first = _before_tokens(by_window, n_positions, model_type)
    return by_window[:, first : first + n_positions]


def _before_tokens(by_window: Tensor, n_positions: int, model_type: str) -> int:
    """The number of positions that a model keeps of its own before the tokens of a window, such as prompts."""
    return by_window.shape[1] - n_positions if families.TOKEN_POSITIONS.get(model_type) == "last" else 0
