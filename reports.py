"""What commands say of models, stores and neurons: as one JSON document for machines, as a few lines for people.

The keys of the documents are an interface. Knows nothing about options or exit statuses.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.text import Text

from actstore import terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.models import ModelSpec
    from actstore.store.reader import Store


def print_json(value: Any) -> None:
    """Write one JSON document; what JSON cannot say (NaN, infinities) becomes null."""
    try:
        sys.stdout.write(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        terminal.out.on_broken_pipe()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def describe_model(spec: ModelSpec) -> dict[str, Any]:
    """What `inspect` says."""
    item = {"float32": 4, "float16": 2, "bfloat16": 2}.get(spec.dtype, 4)
    return {
        "model": spec.name,
        "model_type": spec.model_type,
        "kind": spec.kind,
        "d_model": spec.d_model,
        "vocabulary": spec.n_vocabulary,
        "context": spec.context,
        "dtype": spec.dtype,
        "neurons": sum(s.neurons for s in spec.layers),
        "sites": list(spec.sites),
        "bytes_per_token": {
            site: item * sum(spec.width(layer, site) for layer in spec.layers_of(site)) for site in spec.sites
        },
        "layers": [
            {
                "layer": s.layer,
                "neurons": s.neurons,
                "module": s.module,
                "gated": s.gated,
                "block": s.block,
                "stack": s.stack,
                "expert": s.expert,
            }
            for s in spec.layers
        ],
    }


def describe_store(store: Store) -> dict[str, Any]:
    """What `info` says."""
    captures = {}
    for name in store.captures:
        held = store.capture(name)
        plan = held.record.plan
        captures[name] = {
            "tokens": plan.n_tokens,
            "documents": plan.n_documents,
            "windows": plan.n_windows,
            "sites": list(held.record.sites),
            "precision": held.record.precision,
            "dtype": held.record.value_dtype,
            "gate_sign": bool(held.record.gate_sign),
            "labels": {c: [v for column, v in plan.labels if column == c] for c in plan.label_columns},
            "corpus": plan.corpus,
            "part": held.record.part,
            "images": held.record.of_images,
            "bytes": sum(size for _, size in store.folder.sizes(f"captures/{name}")),
            "blocks": {"planned": plan.n_blocks, "committed": len(held.blocks)},
        }
    model = store.model
    return {
        "store": store.folder.location,
        "model": model.name,
        "model_type": model.model_type,
        "layers": len(model.layers),
        "neurons": sum(layer.neurons for layer in model.layers),
        "bytes": sum(size for _, size in store.folder.sizes()),
        "captures": captures,
    }


def print_store(store: Store) -> None:
    """The same for people: a line on the model, a row a capture."""
    value = describe_store(store)
    terminal.out.print(
        f"{value['store']}: {value['model']} ({value['model_type']}), {value['layers']} layers, {value['neurons']:,} neurons, "
        f"{terminal.format_bytes(value['bytes'])}",
        style="bold",
    )
    rows = []
    for name, held in value["captures"].items():
        blocks = held["blocks"]
        state = (
            "complete"
            if blocks["planned"] == blocks["committed"]
            else f"{blocks['committed']} of {blocks['planned']} blocks"
        )
        rows.append(
            (name, held["tokens"], held["documents"], _sites(held),
             f"{held['precision']} ({held['dtype'] or 'statistics only'})",
             terminal.format_bytes(held["bytes"]), state)
        )  # fmt: skip
    columns = ["capture", ("tokens", "right"), ("documents", "right"), "sites", "precision", ("size", "right"), "state"]
    terminal.out.print(terminal.table(None, columns, rows))


def _sites(held: dict[str, Any]) -> str:
    sites = ", ".join(held["sites"])
    return f"{sites} ({held['part']})" if held["part"] != "language" else sites


def print_neuron(name: str, statistics: dict[str, Any], exemplars: Sequence[dict[str, Any]]) -> None:
    """A neuron's line of statistics and its exemplars."""
    if not exemplars:
        terminal.out.print(f"{name} has no finite activation over any counted token.")
        return
    terminal.out.print(
        f"{name}: mean {statistics['mean']:.3g}, std {statistics['std']:.3g}, max {statistics['max']:.3g}, "
        f"above zero at {100 * statistics['positive']:.1f} % of {statistics['count']:,} tokens",
        style="bold",
    )
    scale = max(abs(e["value"]) for e in exemplars)
    for e in exemplars:
        if terminal.out.is_terminal:
            shown = terminal.highlighted(e["tokens"], e["activations"], e["pivot"], scale)
        else:
            shown = Text(terminal.marked(e["tokens"], e["pivot"]))
        line = Text(f"{e['value']:9.4g}  ") + shown
        terminal.out.print(line, no_wrap=True, overflow="ellipsis", crop=terminal.out.is_terminal, soft_wrap=True)
