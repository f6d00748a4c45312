"""Proofs that a loaded model's sites hold what they are said to hold, by plain hooks and weights read by path.

Nothing here uses what found the sites. Not a test module.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tiny import random_ids
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from actstore.engine.models.families import arguments_for, example_inputs, headless

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.engine.models.load import LoadedModel

Values = dict[tuple[int, str], tuple[Tensor, Tensor | None]]


def inputs_for(loaded: LoadedModel) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Token ids, and random images or sounds for a model that takes them."""
    n_windows = max(2, getattr(loaded.model.config, "num_codebooks", 2))
    ids, extra = example_inputs(headless(loaded.model), random_ids(n_windows))
    return ids, {
        key: torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) for key, value in extra.items()
    }


def read_all(loaded: LoadedModel, ids: Tensor | None, extra: dict[str, Tensor]) -> Values:
    """Every site of every layer, cloned."""
    found: Values = {}

    def sink(layer: int, site: str, values: Tensor, rows: Tensor | None) -> None:
        assert (layer, site) not in found, f"layer {layer} {site} was handed over twice"
        assert values.shape[-1] == loaded.spec.width(layer, site)
        assert rows is None or len(rows) == len(values)
        assert rows is not None or extra or len(values) == ids.numel(), "rows are not all positions"
        found[layer, site] = values.clone(), None if rows is None else rows.clone()

    loaded.forward(ids, None, sites=loaded.spec.sites, sink=sink, extra=extra)
    for site in loaded.spec.sites:
        for layer in loaded.spec.layers_of(site):
            if loaded.spec.layers[layer].expert is None and (extra or loaded.spec.layers[layer].part == "language"):
                assert (layer, site) in found, f"layer {layer} {site} was not handed over"
    return found


@dataclass
class Call:
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@contextmanager
def recorded(loaded: LoadedModel, ids: Tensor | None, extra: dict[str, Tensor]) -> Iterator[dict[str, list[Call]]]:
    """Every call of every module in a plain run of the whole model."""
    calls: dict[str, list[Call]] = defaultdict(list)
    handles = []
    for path, module in loaded.model.named_modules():

        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            calls[path].append(Call(*tree_map(_copy, (args, kwargs, output))))

        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        run(loaded, ids, extra)
    finally:
        for handle in handles:
            handle.remove()
    yield calls


def _copy(value: Any) -> Any:
    """A tensor as it is now: some models go on to write into it."""
    return value.clone() if isinstance(value, Tensor) else value


def run(loaded: LoadedModel, ids: Tensor | None, extra: dict[str, Tensor]) -> Any:
    """A plain run of the model."""
    base = headless(loaded.model)
    with torch.inference_mode():
        return base(**arguments_for(base, ids, None, extra))


def close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors agree relative to the larger one's largest value."""
    left, right = left.reshape(right.shape).double(), right.double()
    if not right.numel():
        return True
    scale = max(right.abs().max().item(), 1e-12)
    return bool(torch.isfinite(right).all()) and (left - right).abs().max().item() <= tolerance * scale


def check_projections(loaded: LoadedModel, found: Values, calls: dict[str, list[Call]]) -> int:
    """Values equal a plain hook's bit for bit, and values times write vectors is the projection's output."""
    runs: dict[str, int] = defaultdict(int)
    checked = 0
    for layer in loaded.spec.layers:
        assert not any(word in layer.module for word in ("attn", "attention.", "adapter", "router")), layer.module
        if "[" in layer.module or (layer.layer, "mlp.post") not in found:
            continue
        values, _ = found[layer.layer, "mlp.post"]
        call = calls[layer.module][runs[layer.module]]
        runs[layer.module] += 1
        plain = call.args[0] if call.args else next(iter(call.kwargs.values()))
        plain, output = (_tokens(loaded, part, len(values)) for part in (plain, call.output))
        assert torch.equal(values, plain), f"{layer.module}: not what a plain hook sees"
        weights, bias = loaded.write_vectors(layer.layer), loaded.output_bias(layer.layer)
        written = values @ weights if bias is None else values @ weights + bias
        assert close(written, output), f"{layer.module}: values times write vectors is not its output"
        checked += 1
    return checked


def _tokens(loaded: LoadedModel, values: Tensor, count: int) -> Tensor:
    """The rows of tokens [row, neuron], where a model keeps further positions in each window."""
    if values.numel() != count * values.shape[-1]:
        by_window = values.reshape(2, -1, values.shape[-1])
        values = {"cpmant": by_window[:, -(count // 2) :], "prophetnet": by_window[:, : count // 2]}[loaded.spec.name]
    return values.reshape(-1, values.shape[-1])


def check_experts(loaded: LoadedModel, found: Values, calls: dict[str, list[Call]]) -> int:
    """Over the experts of one parameter, routing weight times (values times write vectors) adds up to the module's output."""
    groups: dict[str, list[int]] = defaultdict(list)
    for layer in loaded.spec.layers:
        if "[" in layer.module:
            groups[layer.module.rpartition("[")[0]].append(layer.layer)
    for parameter, layers in groups.items():
        path = parameter.rpartition(".")[0]
        while type(loaded.model.get_submodule(path)).__name__ in {"DbrxExpertGLU", "JetMoeParallelExperts"}:
            path = path.rpartition(".")[0]
        call = calls[path][0]
        output = call.output[0] if isinstance(call.output, tuple) else call.output
        assert any((layer, "mlp.post") in found for layer in layers), f"{parameter}: no expert was routed to"
        mixture = loaded.model.get_submodule(path)
        total = _mix(loaded, found, layers, mixture, [*call.args, *call.kwargs.values()])
        assert close(total, output.reshape(total.shape)), f"{parameter}: experts do not add up to the mixture's output"
    return len(groups)


def _mix(loaded: LoadedModel, found: Values, layers: list[int], mixture: nn.Module, arguments: list[Any]) -> Tensor:
    """What a mixture returns, from its experts' values and the routing that it was given."""
    hidden = arguments[0].reshape(-1, arguments[0].shape[-1])
    if type(mixture).__name__ == "Llama4TextExperts":  # every expert is given all rows, weighted beforehand
        stacked = hidden.new_zeros(len(layers), len(hidden) // len(layers), hidden.shape[-1])
        for place, layer in enumerate(layers):
            values, rows = found[layer, "mlp.post"]
            stacked[place][rows] = values @ loaded.write_vectors(layer)
        return stacked.reshape(hidden.shape)
    if type(mixture).__name__ == "JetMoeMoE":
        with torch.inference_mode():
            gates = mixture.router.layer(hidden).float().topk(mixture.router.top_k, dim=1)
        index, weights = gates.indices, gates.values.softmax(1)
        total = torch.zeros_like(hidden) + mixture.bias.detach()
    elif type(mixture).__name__ == "InklingSharedExperts":  # all rows, weighted by a gate of their own
        index = torch.arange(len(layers)).expand(len(hidden), -1)
        weights, total = arguments[1].reshape(len(hidden), -1), torch.zeros_like(hidden)
    else:
        index, weights = arguments[1], arguments[2]
        total = torch.zeros_like(hidden)
    for layer in layers:
        chosen = index == loaded.spec.layers[layer].expert
        if (layer, "mlp.post") not in found:
            assert not chosen.any(), f"layer {layer}: rows were routed to it and none handed over"
            continue
        values, rows = found[layer, "mlp.post"]
        assert rows is not None
        assert rows.dtype == torch.int64
        assert torch.equal(chosen.any(-1).nonzero().flatten(), rows.sort().values), "rows are not those routed"
        bias = loaded.output_bias(layer)
        written = values @ loaded.write_vectors(layer) + (0 if bias is None else bias)
        total.index_add_(0, rows, written * (weights * chosen).sum(-1)[rows, None].to(written.dtype))
    if type(mixture).__name__ == "LongcatFlashExperts":  # some of its experts hand their input on
        total += hidden * (weights * (index >= len(layers))).sum(-1, keepdim=True)
    return total


def check_factors(loaded: LoadedModel, found: Values) -> int:
    """Gate times up is A_post in every gated layer."""
    checked = 0
    for layer in loaded.spec.layers_of("mlp.gate"):
        if (layer, "mlp.gate") in found:
            gate, post = found[layer, "mlp.gate"][0], found[layer, "mlp.post"][0]
            assert close(gate * found[layer, "mlp.up"][0], post, 1e-6), f"layer {layer}: gate times up is not post"
            checked += 1
    return checked


SCALED_STREAM = {
    "beam": "gates the stream before it adds attention",
    "minimax": "scales the stream before it adds attention",
    "rwkv": "norms the stream before its first block's sum",
}
"""Types where resid.mid is neither resid.pre + attn.out nor its norm, and why."""


def check_stream(loaded: LoadedModel, found: Values) -> dict[str, int]:
    """How blocks add to the stream: pre + attention = mid (or its norm), and where a block's output is the next one's input.

    A decoder that reads an encoder adds its cross-attention before resid.mid as well; the types of `SCALED_STREAM` are let off.
    """
    counts: dict[str, int] = defaultdict(int)
    blocks = [layer for layer in loaded.spec.layers_of("resid.pre") if (layer, "resid.pre") in found]
    for layer in blocks:
        pre = found[layer, "resid.pre"][0]
        if (layer, "resid.mid") in found and (layer, "attn.out") in found:
            summed, mid = pre + found[layer, "attn.out"][0], found[layer, "resid.mid"][0]
            counts["sequential" if close(summed, mid) else "normed" if _norms(loaded, summed, mid) else "other"] += 1
    if loaded.spec.kind != "encoder-decoder" and loaded.spec.model_type not in SCALED_STREAM:
        assert "other" not in counts, "resid.pre + attn.out is neither resid.mid nor made it by a norm"
    for layer, following in itertools.pairwise(blocks):
        here, there = loaded.spec.layers[layer], loaded.spec.layers[following]
        if (here.stack, here.block + 1) == (there.stack, there.block):
            post, pre = found[layer, "resid.post"][0], found[following, "resid.pre"][0]
            counts["joined" if post.shape == pre.shape and torch.equal(post, pre) else "apart"] += 1
    return dict(counts)


def _norms(loaded: LoadedModel, summed: Tensor, mid: Tensor) -> bool:
    """Whether some norm of the model makes one tensor of the other."""
    for module in loaded.model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.shape == mid.shape[-1:]:
            with torch.inference_mode():
                if close(module(summed), mid):
                    return True
    return False


ATTEND_ALONE = (
    "apertus", "arcee", "bert", "bert-generation", "big_bird", "biogpt", "blenderbot", "bloom", "gpt2", "llama",
)  # fmt: skip
"""Types whose output projection of attention reads its values as they are where a token sees itself alone. Gates, sinks and
norms in between make others differ."""


def check_heads(loaded: LoadedModel, ids: Tensor | None, extra: dict[str, Tensor]) -> dict[str, int]:
    """How many layers give a token that sees itself alone its own values: attn.z is attn.v, repeated for heads that share it.

    All layers of the types of `ATTEND_ALONE` do.
    """
    spec = loaded.spec
    running = {layer.layer for layer in spec.layers if layer.part == "language"}  # no image is read
    both = [layer for layer in spec.layers_of("attn.v") if layer in running.intersection(spec.layers_of("attn.z"))]
    if ids is None or extra or spec.kind not in ("causal", "encoder") or not both:
        return {}
    found: dict[tuple[int, str], Tensor] = {}

    def sink(layer: int, site: str, values: Tensor, rows: Tensor | None) -> None:
        found[layer, site] = values.clone()

    loaded.forward(ids[:, :1], None, sites=("attn.v", "attn.z"), layers=both, sink=sink)
    counts: dict[str, int] = defaultdict(int)
    for layer in both:
        values, mixed = found[layer, "attn.v"], found[layer, "attn.z"]
        shared, rest = divmod(mixed.shape[-1], values.shape[-1])
        sizes = [size for size in range(1, values.shape[-1] + 1) if values.shape[-1] % size == 0]
        repeated = (values.unflatten(-1, (-1, size)).repeat_interleave(shared, -2).flatten(-2) for size in sizes)
        counts["alone" if not rest and any(close(one, mixed) for one in repeated) else "other"] += 1
    if spec.model_type in ATTEND_ALONE:
        assert "other" not in counts, f"attn.z is not attn.v of a lone token: {dict(counts)}"
    return dict(counts)


def check_effect(loaded: LoadedModel, ids: Tensor | None, extra: dict[str, Tensor]) -> None:
    """Changing A_post of the last dense layer changes what the model returns: it is no dead end."""
    running = [layer for layer in loaded.spec.layers if extra or layer.part == "language"]
    dense = [layer for layer in running if "[" not in layer.module and layer.expert is None]
    if not dense:
        return

    def first(output: Any) -> Tensor:
        return next(value for value in output.values() if isinstance(value, Tensor) and value.is_floating_point())

    module = loaded.model.get_submodule(dense[-1].module)
    before = first(run(loaded, ids, extra))
    handle = module.register_forward_pre_hook(lambda _module, args: (args[0] + 1.0, *args[1:]))
    try:
        after = first(run(loaded, ids, extra))
    finally:
        handle.remove()
    assert not torch.allclose(before, after), f"{dense[-1].module}: its input does not matter"
