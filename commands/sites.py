"""Hook names of TransformerLens on a command line: `--site blocks.3.mlp.hook_post` is `--site mlp.post --layers 3`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from actstore.store.errors import ActstoreError, InvalidInputError
from actstore.store.neurons import parse_neuron
from actstore.store.reader import Store
from actstore.store.sites import all_named, check_blocks, check_layers_of, known_site

if TYPE_CHECKING:
    from collections.abc import Sequence

OPTION: Final = "--site"
_NEURON: Final = re.compile(r"L\d+\.N\d+", re.IGNORECASE)


def without_hooks(command: Any, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command with sites in the place of hook names, and `--layers` with the layers that these name.

    `InvalidInputError` where other layers are given, or the command takes none; where neurons are named, their layers count.
    """
    flat = [part for one in arguments for part in (one.split("=", 1) if one.startswith(f"{OPTION}=") else [one])]
    values = [i + 1 for i, one in enumerate(flat[:-1]) if one == OPTION]
    if not any(flat[i].startswith("blocks.") for i in values):
        return list(arguments)
    hooks = [flat[i] for i in values]
    sites, layers = all_named(hooks, [known_site(hook) for hook in hooks])
    _check_blocks(getattr(command, "name", ""), flat)
    kept = [one for i, one in enumerate(flat) if i not in values and i + 1 not in values]
    named = [part for site in sites for part in (OPTION, site)]
    parameters = {parameter.name for parameter in getattr(command, "params", ())}
    if "layers" not in parameters or "neurons" in parameters:
        neurons = _neurons_in(kept)
        check_layers_of(neurons, hooks[0], layers)
        if neurons:
            return [*kept, *named]
    if "layers" not in parameters:
        raise InvalidInputError(
            f"The hook {hooks[0]!r} names layer {layers[0]}, and this command is of all layers. Name the site, {sites[0]}."
        )
    if any(one == "--layers" or one.startswith("--layers=") for one in kept):
        raise InvalidInputError(
            f"The hook {hooks[0]!r} names layer {layers[0]}. Leave `layers` out, or name the site {sites[0]}."
        )
    return [*kept, *named, "--layers", ",".join(map(str, layers))]


def _neurons_in(arguments: Sequence[str]) -> list[tuple[int, int]]:
    """The neurons, (layer, index), that arguments name: L3.N17, --neurons L3.N17,L3.N18, --neurons=L3.N17."""
    names = [name.strip() for one in arguments for name in one.rpartition("=")[2].split(",")]
    return [parse_neuron(name) for name in names if _NEURON.fullmatch(name)]


def _check_blocks(command: str, arguments: Sequence[str]) -> None:
    """`InvalidInputError` where the blocks of the store's, or of the named, model are not its layers."""
    named = next((one for one in arguments if not one.startswith("-")), "")
    try:
        if command in ("capture", "plan"):
            from actstore.engine.models.load import inspect_model

            layers: Any = inspect_model(named).layers
        else:
            layers = Store(named).model.layers
    except (ActstoreError, OSError):
        return  # what is wrong with it, the command says
    check_blocks(layers, named)
