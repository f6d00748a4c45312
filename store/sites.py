"""Hook names of TransformerLens for sites: `blocks.3.mlp.hook_post` is `mlp.post` in layer 3."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from actstore.store.errors import InvalidInputError
from actstore.store.neurons import neuron_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

HOOKS: Final[Mapping[str, str]] = {
    "mlp.hook_post": "mlp.post",
    "mlp.out.hook_in": "mlp.post",
    "mlp.hook_pre_linear": "mlp.up",
    "hook_resid_pre": "resid.pre",
    "hook_in": "resid.pre",
    "hook_resid_mid": "resid.mid",
    "hook_resid_post": "resid.post",
    "hook_out": "resid.post",
    "hook_attn_out": "attn.out",
    "attn.hook_q": "attn.q",
    "attn.hook_k": "attn.k",
    "attn.hook_v": "attn.v",
    "attn.hook_z": "attn.z",
}
"""Hook in a block → the site of the same values: names of HookedTransformer, and of TransformerBridge's blocks."""

_HOOK: Final = re.compile(r"blocks\.(\d{1,7})\.([A-Za-z0-9_.]+)")
_SITE_ARGUMENTS: Final = ("site", "sites")


def parse_hook(name: str) -> tuple[str, int] | None:
    """Site and layer of a hook name; None for a name of another form.

    A hook that is no site of ours keeps its own name, without `hook_`: `blocks.3.attn.hook_z` is `attn.z` in layer 3. The
    number of a block is the layer's where each block has one feed-forward layer.
    """
    match = _HOOK.fullmatch(name)
    if match is None:
        return None
    block, hook = int(match[1]), match[2]
    return HOOKS.get(hook, hook.replace("hook_", "")), block


def known_site(name: str) -> tuple[str, int] | None:
    """As `parse_hook`; `InvalidInputError` for a hook whose values no site has."""
    parsed = parse_hook(name)
    if parsed is not None and parsed[0] not in HOOKS.values():
        hook = _HOOK.fullmatch(name)
        assert hook is not None
        raise InvalidInputError(
            f"No site has the values of the hook {name!r}. Hooks with a site: {', '.join(HOOKS)}; found {hook[2]}."
        )
    return parsed


def site_and_layers(name: str, layers: Sequence[int] | None, what: str) -> tuple[str, tuple[int, ...] | None]:
    """The site that `name` is or whose hook it is, and `layers`, or else the hook's layer.

    `InvalidInputError` where `layers`, which `what` calls, are others than the hook's.
    """
    parsed = parse_hook(name)
    if parsed is None:
        return name, None if layers is None else tuple(layers)
    site, layer = parsed
    if layers is not None and tuple(layers) != (layer,):
        raise InvalidInputError(
            f"The hook {name!r} is of layer {layer}, and {what} {', '.join(map(str, layers)) or 'none'}. Leave one out, or "
            f"name the site {site!r}."
        )
    return site, (layer,)


def with_sites(arguments: dict[str, Any], names: Sequence[str], owner: object = None) -> dict[str, Any]:
    """The arguments of a call in which sites may be hook names, with sites in their place and the layers that the hooks name.

    `names` are the parameters of what is called, `owner` is whose method it is: a neuron has a layer. `InvalidInputError` where
    the call has no layers, or others.
    """
    for parameter in _SITE_ARGUMENTS:
        given = arguments.get(parameter)
        hooks = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
        parsed = [known_site(hook) if isinstance(hook, str) else None for hook in hooks]
        if not any(parsed):
            continue
        sites, layers = all_named(hooks, parsed)
        if (model := _model_of(owner)) is not None:
            check_blocks(model.layers, model.name)
        sites = [SiteOfHook(site) for site in sites]
        arguments = {**arguments, parameter: sites[0] if isinstance(given, str) else tuple(sites)}
        arguments |= _layer_arguments(arguments, names, owner, hooks[0], layers)
    return arguments


def all_named(hooks: Sequence[str], parsed: Sequence[tuple[str, int] | None]) -> tuple[list[str], list[int]]:
    """The sites and the layers of several hooks, which name each site in each layer."""
    pairs = [pair for pair in parsed if pair is not None]
    sites, layers = list(dict.fromkeys(site for site, _ in pairs)), sorted({layer for _, layer in pairs})
    if len(pairs) < len(hooks) or len(set(pairs)) != len(sites) * len(layers):
        raise InvalidInputError(
            f"All sites are taken in all layers, and these name others: {', '.join(map(str, hooks))}. Name sites such as "
            f"{', '.join(sites)}, and `layers`."
        )
    return sites, layers


def check_layers_of(neurons: Iterable[tuple[int, int]], hook: str, layers: Sequence[int]) -> None:
    """`InvalidInputError` where one of the neurons, (layer, index), is of none of the layers that hooks name."""
    of_neurons = [layer for layer, _ in neurons]
    if others := sorted(set(of_neurons) - set(layers)):
        site_and_layers(hook, others, f"the neuron{' is' if len(of_neurons) == 1 else 's are'} of layer")


def _layer_arguments(
    arguments: Mapping[str, Any], names: Sequence[str], owner: object, hook: str, layers: list[int]
) -> dict[str, Any]:
    """The arguments that say the layers of `hook`, after checking those that are there."""
    if "layer" in names or ("layers" not in names and isinstance(getattr(owner, "layer", None), int)):
        given = arguments.get("layer", getattr(owner, "layer", None))
        site_and_layers(hook, (given,), "the call is of layer")
        return {}
    if (neurons := arguments.get("neurons")) is not None:
        pairs = neuron_pairs(neurons)
        check_layers_of(pairs, hook, layers)
        return {"neurons": pairs}  # read once: it may be an iterator
    if "layers" in names:
        given = arguments.get("layers")
        if given is not None and sorted([given] if isinstance(given, int) else given) != layers:
            site_and_layers(hook, [given] if isinstance(given, int) else given, "`layers` are")
        return {"layers": tuple(layers)}
    raise InvalidInputError(
        f"The hook {hook!r} names layer {layers[0]}, and this call is of all layers. Name the site, "
        f"{(parse_hook(hook) or (hook,))[0]!r}."
    )


class SiteOfHook(str):
    """A site that was named by a hook, so with the number of a block; otherwise the site."""

    __slots__ = ()


def check_blocks(layers: Iterable[Any], what: str) -> None:
    """`InvalidInputError` where the layers of a model are not its blocks: hooks number these, and we those."""
    if any(one.layer != one.block or one.expert is not None for one in layers):
        raise InvalidInputError(
            f"Hooks are numbered by blocks, which are not the layers of {what}: it has experts, or several stacks. Name "
            "the site, and the layer."
        )


def _model_of(owner: object) -> Any:
    """The record of the model of a store, or of what belongs to one; None where it is not known."""
    for one in (owner, getattr(owner, "store", None), getattr(owner, "_store", None)):
        if (model := getattr(one, "model", None)) is not None:
            return model
    return None


def has_sites(names: Sequence[str]) -> bool:
    """Whether a function with these parameters takes sites."""
    return any(name in names for name in _SITE_ARGUMENTS)


def of_sites(
    names: Sequence[str],
) -> Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """What puts sites in the place of hook names in the arguments of a function with these parameters."""
    places = [(name, names.index(name)) for name in _SITE_ARGUMENTS if name in names]

    def translate(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for name, place in places:
            if _has_hook(args[place] if place < len(args) else kwargs.get(name)):
                break
        else:
            return args, kwargs
        bound = dict(zip(names, args, strict=False)) | kwargs
        changed = with_sites(bound, names, bound.get("self"))
        return tuple(changed.pop(name) for name in names[: len(args)]), changed

    return translate


def _has_hook(value: object) -> bool:
    if isinstance(value, str):  # nearly always, and once per row that is read
        return value.startswith("blocks.")
    return isinstance(value, list | tuple) and any(isinstance(one, str) and one.startswith("blocks.") for one in value)
