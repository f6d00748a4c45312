"""What commands print about models, stores and neurons: one JSON document for programs, a few lines for people.

The keys of the documents are an interface.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from actstore.display import terminal
from actstore.display.highlight import highlighted, marked
from actstore.store.errors import UnlistableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.models.load import ModelSpec
    from actstore.store.reader import Capture, Store


_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *range(0xD800, 0xE000))}
"""What JSON lets stand and a terminal obeys, or UTF-8 cannot hold; it occurs in JSON's texts only."""


def print_json(value: object) -> None:
    """Write one JSON document; what JSON cannot say (NaN, infinities) becomes null. Warnings name options, as on the screen."""
    if isinstance(value, dict) and isinstance(value.get("warnings"), list | tuple):
        value = value | {"warnings": [terminal.phrase(warning) for warning in value["warnings"]]}
    try:
        sys.stdout.write(json_text(value) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        terminal.out.on_broken_pipe()


def json_text(value: object) -> str:
    """The same document as text, in one line."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False).translate(_ESCAPED)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def print_rows(
    columns: Sequence[str | Sequence[str]], rows: Sequence[Sequence[object]], n_rows: int, what: str
) -> None:
    """A table of the first rows of `n_rows`, and how to see the rest; `what` they are."""
    terminal.out.print(terminal.table(None, columns, rows))
    if n_rows > len(rows):
        terminal.out.print(f"… {n_rows - len(rows):,} more {what}: --rows 0 shows them, --json has them all.")


def token_list(texts: Sequence[str], width: int, n: int = 5) -> str:
    """The first tokens of a list, at most n of them and as many as there is room for; of the first at least its beginning."""
    shown = [terminal.visible(text.replace(" ", "␣")) for text in texts[:n]]
    line = ""
    for text in shown:
        longer = f"{line}  {text}" if line else text
        if cell_len(longer) > width:
            return line or set_cell_size(text, width - 1) + "…"
        line = longer
    return line


def describe_model(spec: ModelSpec) -> dict[str, Any]:
    """What `inspect` prints."""
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
    """What `info` prints."""
    captures, errors = store.read_captures()
    nbytes = _sizes(store)
    described = {
        name: _describe_capture(capture) | {"bytes": None if nbytes is None else nbytes[name]}
        for name, capture in captures.items()
    }
    model = store.model
    return {
        "store": store.folder.location,
        "model": model.name,
        "model_type": model.model_type,
        "layers": len(model.layers),
        "neurons": sum(layer.neurons for layer in model.layers),
        "bytes": None if nbytes is None else nbytes[""],
        "captures": described,
        "damaged": {name: str(error) for name, error in errors.items()},
    }


def _sizes(store: Store) -> Counter[str] | None:
    """Bytes of each capture, and of the whole store under ""; None where the storage cannot list what is there."""
    nbytes: Counter[str] = Counter()
    try:
        for key, size in store.folder.sizes():
            nbytes[""] += size
            if key.startswith("captures/"):
                nbytes[key.split("/")[1]] += size
    except (UnlistableError, PermissionError):
        return None
    return nbytes


def _describe_capture(capture: Capture) -> dict[str, Any]:
    plan = capture.record.plan
    return {
        "tokens": plan.n_tokens,
        "documents": plan.n_documents,
        "windows": plan.n_windows,
        "sites": list(capture.record.sites),
        "order": {site: capture.record.order.get(site, "neuron") for site in capture.record.sites},
        "precision": capture.record.precision,
        "dtype": capture.record.value_dtype,
        "gate_sign": bool(capture.record.gate_sign),
        "labels": {c: [v for column, v in plan.labels if column == c] for c in plan.label_columns},
        "corpus": plan.corpus,
        "part": capture.record.part,
        "images": capture.record.of_images,
        "blocks": {"planned": plan.n_blocks, "committed": len(capture.blocks)},
        "finished": capture.is_finished,
        "checked": capture.record.is_checked,
        # Of what is not finished all statistics would have to be added up.
        "overflow": {
            site: {"neurons": len(found.names), "activations": found.n_values}
            for site, found in capture.overflow.items()
        }
        if capture.is_finished
        else None,
    }


def summarise_capture(held: Capture) -> dict[str, Any]:
    """The description of a capture for people: the same in fewer words."""
    return _summary(held.record.name, _describe_capture(held))


def _summary(name: str, description: dict[str, Any]) -> dict[str, Any]:
    sites = ", ".join(_with_order(site, description) for site in description["sites"])
    return description | {
        "name": name,
        "sites": f"{sites} ({description['part']})" if description["part"] != "language" else sites,
        "precision": f"{description['precision']} ({description['dtype'] or 'statistics only'})",
        "labels": ", ".join(f"{column} ({len(values):,} values)" for column, values in description["labels"].items()),
    }


def _with_order(site: str, description: dict[str, Any]) -> str:
    """A site's name, and that its values lie token by token where they do; neuron by neuron is not said."""
    return f"{site} (by token)" if description["dtype"] and description["order"][site] == "token" else site


def state_of(description: dict[str, Any]) -> str:
    """How far a capture is filled."""
    planned, committed = (description["blocks"][name] for name in ("planned", "committed"))
    if planned == committed:
        return "complete" if description["finished"] else "filled, not finished"
    return f"{committed:,} of {planned:,} blocks"


def _size(nbytes: int | None) -> str:
    return "size not known" if nbytes is None else terminal.format_bytes(nbytes)


def print_store(value: dict[str, Any]) -> None:
    """The same for people: one line about the model, one row per capture."""
    terminal.out.print(
        f"{value['store']}: {value['model']} ({value['model_type']}), {value['layers']} layers, {value['neurons']:,} neurons, "
        f"{_size(value['bytes'])}",
        style="bold",
    )
    rows = [
        (
            held["name"],
            held["tokens"],
            held["documents"],
            held["sites"],
            held["precision"],
            _size(held["bytes"]),
            state_of(held),
        )
        for held in (_summary(name, held) for name, held in value["captures"].items())
    ]
    columns = ["capture", ("tokens", "right"), ("documents", "right"), "sites", "precision", ("size", "right"), "state"]
    rows += [(name, "", "", "", "", "", "damaged") for name in value["damaged"]]
    terminal.out.print(terminal.table(None, columns, rows))
    for name, reason in value["damaged"].items():
        terminal.out.print(f"{name}: damaged: {reason}", style="red", soft_wrap=True, markup=False)
    if unchecked := [name for name, held in value["captures"].items() if not held["checked"]]:
        terminal.out.print(
            f"unchecked, of an earlier version whose rows have no checksums: {', '.join(unchecked)}",
            soft_wrap=True,
            markup=False,
        )


def neuron_summary(name: str, statistics: dict[str, Any], has_exemplars: bool) -> str:
    """A neuron's line of statistics."""
    if not has_exemplars:
        return f"{name} has no finite activation over any counted token."
    return (
        f"{name}: mean {statistics['mean']:.3g}, std {statistics['std']:.3g}, max {statistics['max']:.3g}, "
        f"above zero at {terminal.percent(statistics['positive'])} of {statistics['count']:,} tokens"
    )


_LEAST_ROOM = 20
"""Cells beside an exemplar's value; where there are fewer, the tokens stand below it."""


def exemplar_line(exemplar: dict[str, Any], scale: float, *, colours: bool, width: int | None = None) -> Text:
    """An exemplar's value and tokens: highlighted in colours, else with the token of the value marked.

    `width`: cells of a line; the tokens farthest from that of the value are left out.
    """
    value = f"{exemplar['value']:9.4g}  "
    if not colours:
        return Text(value + marked(exemplar["tokens"], exemplar["pivot"]))
    room = None if width is None else width - len(value)
    if room is not None and room < _LEAST_ROOM:
        value, room = f"{value.strip()}\n", width
    shown = highlighted(exemplar["tokens"], exemplar["activations"], exemplar["pivot"], scale, room)
    return Text(value) + shown


def print_neuron(name: str, statistics: dict[str, Any], exemplars: Sequence[dict[str, Any]]) -> None:
    """A neuron's line of statistics and its exemplars."""
    terminal.out.print(neuron_summary(name, statistics, bool(exemplars)), style="bold" if exemplars else None)
    scale = max((abs(e["value"]) for e in exemplars), default=0.0)
    on_terminal = terminal.out.is_terminal
    for exemplar in exemplars:
        line = exemplar_line(exemplar, scale, colours=on_terminal, width=terminal.out.width if on_terminal else None)
        terminal.out.print(line, soft_wrap=True)
