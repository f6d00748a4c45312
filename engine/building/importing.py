"""`actstore.import_activations`: what other tools leave, as a capture; the table of layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actstore.engine.building.builder import CaptureBuilder
from actstore.engine.building.formats import hidden_states, hooks, saelens
from actstore.engine.building.formats.batch import ReadOptions
from actstore.engine.building.names import FORMATS
from actstore.store.arguments import argument
from actstore.store.calls import checked
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from actstore.engine.building.formats.batch import Batch
    from actstore.engine.models.in_memory import ModelInput
    from actstore.store.reader import Capture

__all__ = ["import_activations"]

READERS: Final[Mapping[str, Callable[[Any, ReadOptions], Iterator[Batch]]]] = {
    "hooks": hooks.read,
    "hidden-states": hidden_states.read,
    "saelens": saelens.read,
}
"""Name of a layout → its reader; the names are those of `FORMATS`."""


@dataclass(frozen=True)
class _Imported:
    """A source, and how it is read."""

    source: Any
    format: str

    def batches(self, options: ReadOptions) -> Iterator[Batch]:
        return READERS[self.format](self.source, options)


@checked
def import_activations(
    source: str | Path | Mapping[str, Any],
    store: str | Path,
    *,
    format: str | None = None,
    name: str = "corpus",
    ids: Any = None,
    hooks: Sequence[str] = (),
    layers: int | Sequence[int] | None = None,
    model: ModelInput | None = None,
    model_name: str = "arrays",
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    replace: bool = False,
    precision: str | None = None,
    order: str | None = None,
    trust_remote_code: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> Capture:
    """Import activations that another tool computed into `store`, a new one or one that is there; the finished capture.

    - `source`: a dictionary of tensors by hook name, TransformerLens' ActivationCache, or a path
    - `format`: "hooks" (tensors by hook name, in memory or in safetensors files), "hidden-states" (a safetensors file per
      sample, as vLLM saves and speculators reads them), "saelens" (its cached data set) [told by what is there]
    - `ids`: token ids of a cache in memory, [sequence, token] or [token]
    - `hooks`: which hooks are taken, by name or its end, such as "attn.hook_z", a site of its own [those of a model's sites]
    - `layers`: only these; of hidden states, the numbers of vLLM's `eagle_aux_hidden_state_layer_ids`: n is `resid.post` of
      layer n − 1, the stream after n layers
    - `name`, `model`, `model_name`, `tokenizer`, `replace`, `precision`, `order`, `trust_remote_code`, `storage_options`: as
      of `CaptureBuilder`

    `InvalidInputError` for what does not fit; the capture is there whole, or not at all.

    >>> _, cache = model.run_with_cache(tokens)
    >>> actstore.import_activations(cache, "gpt2.actstore", ids=tokens, model="gpt2")
    >>> actstore.import_activations("hidden_states/", "qwen.actstore", layers=(2, 18, 33), model="Qwen/Qwen3-8B")
    """
    imported = _Imported(source, _format_of(source, argument("format", format, str | None)))
    options = ReadOptions(
        ids, argument("hooks", hooks, tuple[str, ...]), argument("layers", layers, tuple[int, ...] | None)
    )
    builder = CaptureBuilder(
        store, name, model=model, model_name=model_name, tokenizer=tokenizer, replace=replace, precision=precision, order=order,
        corpus=str(source) if isinstance(source, str | Path) else imported.format, trust_remote_code=trust_remote_code,
        storage_options=storage_options,
    )  # fmt: skip
    with builder:
        builder.check_blocks()
        for batch in imported.batches(options):
            builder.add(batch.activations, ids=batch.ids, source=batch.source)
    return builder.capture


def _format_of(source: object, given: str | None) -> str:
    """The layout of a source: `given`, or else what it looks like."""
    if given is not None:
        if given not in FORMATS:
            raise InvalidInputError(f"`format` is one of {', '.join(FORMATS)}: found {given!r}.")
        return given
    if not isinstance(source, str | Path):
        return "hooks"
    path = Path(source)
    if not path.exists():
        raise InvalidInputError(f"There is nothing at {path}. Check the path.")
    if (path / saelens.STATE).is_file():
        return "saelens"
    files = hidden_states.sample_files(path)
    if files and files[0].suffix == ".safetensors":
        return "hidden-states" if hidden_states.holds_samples(files[0]) else "hooks"
    raise InvalidInputError(
        f"{path} is no safetensors file, no folder of them, and no saved data set. Name its layout: `format` is one of "
        f"{', '.join(FORMATS)}."
    )
