"""What the commands of `edit` say of an edit: as JSON, in one sentence, and what is predicted of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.display import terminal
from actstore.store.neurons import neuron_name

if TYPE_CHECKING:
    from actstore.store.edits import EditRecord
    from actstore.store.storage.folder import Folder


def describe_edit(record: EditRecord) -> dict[str, Any]:
    """An edit as the JSON documents list it."""
    from actstore.engine.edit.specification import Specification

    names = record.neuron_names()
    if record.specification:
        by_layer = Specification.from_json(record.specification, f"edit {record.name!r}: specification").neurons()
        names = [neuron_name(layer, neuron) for layer, neurons in by_layer.items() for neuron in neurons]
    shown = ("name", "form", "kind", "model", "model_fingerprint", "dtype", "created")
    described: dict[str, Any] = {key: getattr(record, key) for key in shown} | {"neurons": names}
    if "from" in record.settings:
        described |= {key: record.settings[key] for key in ("from", "to", "capture")}
    if "requests" in record.settings:
        described["capture"] = record.settings["capture"]
        described["requests"] = [
            {key: request[key] for key in ("prompts", "target", "subject")} for request in record.settings["requests"]
        ]
    if "warning" in record.settings:
        described["warning"] = terminal.phrase(record.settings["warning"])
    if record.predicted:
        described["predicted"] = {key: record.predicted[key] for key in ("won", "kept")}
    return described


def sentence(folder: Folder, record: EditRecord) -> str:
    """One sentence about a new edit: its form, its neurons, its folder."""
    what = f"{record.form} of {terminal.plural(len(describe_edit(record)['neurons']), 'neuron')}"
    return f"Edit {record.name!r}: {what}, in {folder.location}/edits/{record.name}"


def print_prediction(record: EditRecord) -> None:
    """Print what is predicted of a new rewrite, and its warning."""
    known = record.settings
    if "requests" in known and record.predicted:
        terminal.out.print(
            f"The target should now win at {terminal.percent(record.predicted['won'])} of the {known['n_positions']:,} "
            f"positions that predict its tokens; of other predictions {terminal.percent(record.predicted['kept'])} should "
            "stay.",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    elif record.predicted and "from" in known:
        terminal.out.print(
            f"{known['from']!r} is predicted at {known['n_positions']:,} positions, where {known['to']!r} should now win at "
            f"{terminal.percent(record.predicted['won'])}; of other predictions {terminal.percent(record.predicted['kept'])} "
            "should stay.",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    elif "steps_taken" in known:
        terminal.out.print(
            f"Learned from {terminal.plural(known['examples'], 'example')} in {terminal.plural(known['steps_taken'], 'step')}: "
            f"in them {words_of(record)[1]!r} has a "
            f"probability of at least {known['probability']:.3f}.",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    if "warning" in known:
        terminal.warn([known["warning"]])


def words_of(record: EditRecord) -> tuple[str, str]:
    """What an edit exchanges: two words, or its first prompt and the target that should follow; empty for another edit."""
    known = record.settings
    if "from" in known:
        return known["from"], known["to"]
    if known.get("requests"):
        first = known["requests"][0]
        return first["prompts"][0], first["target"]
    return "", ""
