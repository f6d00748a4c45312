"""`store.edits`: edits that a store holds, made, applied, judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actstore.api.light import explains
from actstore.api.method import Method
from actstore.api.models import open_reader
from actstore.api.neurons import neuron_pairs
from actstore.api.results import Answer
from actstore.store.neurons import neuron_name
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from actstore.api.models import ModelOptions
    from actstore.api.neurons import NeuronInput
    from actstore.engine.edit.evaluate import Evaluation
    from actstore.engine.models.in_memory import ModelInput
    from actstore.store.edits import Edit


@explains
class EditsMethod(Method):
    """The edits of a store, by name: `store.edits["suppress"]`, `list(store.edits)`, `store.edits.rewrite(…)`."""

    _reached_as = "store.edits"

    def __iter__(self) -> Iterator[str]:
        from actstore.store.edits import edit_names

        return iter(edit_names(self._store.folder))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)

    def __getitem__(self, name: str) -> Edit:
        from actstore.store.edits import read_edit

        return read_edit(self._store.folder, name)

    def table(self) -> Table:
        """One row per edit: name, form, kind, number of neurons, the words exchanged, when it was made."""
        from actstore.store.edits import read_record

        records = [read_record(self._store.folder, name) for name in self]
        rows = [
            {
                "name": record.name,
                "form": record.form,
                "kind": record.kind,
                "from": record.settings.get("from"),
                "to": record.settings.get("to"),
                "created": record.created,
            }
            for record in records
        ]
        schema = pa.schema([(name, pa.string()) for name in ("name", "form", "kind", "from", "to", "created")])
        return Table(pa.Table.from_pylist(rows, schema))

    def suppress(
        self,
        neurons: NeuronInput | Iterable[NeuronInput],
        *,
        name: str = "suppress",
        kind: str = "weights",
        positions: str = "all",
        force: bool = False,
    ) -> Edit:
        """An edit that silences neurons: their write vectors become 0, or with `kind="intervention"` their activations."""
        return self._scale("suppress", neurons, 0.0, name, kind, positions, force=force)

    def boost(
        self,
        neurons: NeuronInput | Iterable[NeuronInput],
        factor: float = 2.0,
        *,
        name: str = "boost",
        kind: str = "weights",
        positions: str = "all",
        force: bool = False,
    ) -> Edit:
        """An edit that multiplies the write vectors of neurons, or with `kind="intervention"` their activations."""
        return self._scale("boost", neurons, factor, name, kind, positions, force=force)

    def _scale(
        self, form: str, neurons: Any, factor: float, name: str, kind: str, positions: str, *, force: bool
    ) -> Edit:
        from actstore.engine.edit.positions import parse_positions
        from actstore.engine.edit.scaling import scaled_edit
        from actstore.engine.edit.specification import Operation

        names = tuple(neuron_name(layer, index) for layer, index in neuron_pairs(neurons))
        operation = Operation(form, names, parse_positions(positions), factor=factor)
        return self._keep(scaled_edit(self._store, name, operation, kind), force=force)

    def add(self, specification: dict[str, Any], *, name: str = "intervention", force: bool = False) -> Edit:
        """An intervention as a specification gives it: operations suppress, boost, set, noise and patch, in order.

        >>> store.edits.add({"operations": [{"kind": "set", "neurons": ["L3.N17"], "positions": "last", "value": 2.5}]})
        """
        from actstore.engine.edit.scaling import intervention
        from actstore.engine.edit.specification import Specification, check_neurons

        parsed = Specification.from_json(specification, "specification")
        widths = {layer.layer: layer.neurons for layer in self._store.model.layers}
        check_neurons(parsed.neurons(), widths, self._store.model.name)
        return self._keep(intervention(self._store, name, "intervention", parsed.operations), force=force)

    def rewrite(
        self,
        old: str,
        new: str,
        *,
        method: str = "least-norm",
        name: str | None = None,
        neurons: NeuronInput | Iterable[NeuronInput] | None = None,
        k: int | None = None,
        layers: Sequence[int] | None = None,
        margin: float = 2.0,
        control: float = 1.0,
        ridge: float = 0.001,
        max_documents: int | None = None,
        examples: int = 8,
        steps: int = 50,
        rate: float = 0.001,
        per_position: int = 5,
        leave_last: int = 3,
        seed: int = 0,
        capture: str | None = None,
        model: ModelInput | None = None,
        options: ModelOptions | None = None,
        force: bool = False,
    ) -> Edit:
        """Makes the model say one word in place of another, by changing the write vectors of a few neurons.

        - `method`: `least-norm` (no model runs), `fine`, `knowledge`, or `fine-tune`, the baseline.
        - `name`: name of the edit; both words and the method unless given.
        - `neurons`: names or (layer, index); found unless given.
        - `k`: number of neurons (least-norm, knowledge); as few as do unless given.
        - `margin`, `control`, `ridge`: how far ahead the new word's logit is put, the weight of positions that must not change,
          the weight of the change's own size (least-norm).
        - `max_documents`: learn from the capture's first documents only.
        - `examples`, `steps`, `rate`, `per_position`, `leave_last`, `seed`: of the learned methods.
        - `force`: replace an edit of that name.

        >>> store.edits.rewrite("red", "green", k=10)
        """
        from actstore.engine.edit.rewrite import needs_model, rewrite
        from actstore.engine.edit.settings import FineSettings, LeastNormSettings, RewriteSettings

        pairs = tuple(neuron_pairs(neurons)) if neurons is not None else None
        settings = RewriteSettings(
            old,
            new,
            method,
            pairs,
            LeastNormSettings(
                k=k,
                layers=tuple(layers) if layers is not None else None,
                margin=margin,
                control=control,
                ridge=ridge,
                max_documents=max_documents,
            ),
            FineSettings(steps=steps, rate=rate, per_position=per_position, leave_last=leave_last),
            examples=examples,
            seed=seed,
        )
        opened = self._store.capture(capture)
        title = name or f"{old.strip()}-{new.strip()}-{method}".replace("/", "-")
        self._check_free(title, force=force)
        if not needs_model(settings, opened):
            return self._keep(rewrite(opened, title, settings), force=force)
        with open_reader(opened, model, options) as reader:
            return self._keep(rewrite(opened, title, settings, reader), force=force)

    def apply(
        self,
        names: str | Sequence[str],
        output: str | Path | None = None,
        *,
        model: str | Path | None = None,
        in_place: bool = False,
        force: bool = False,
        trust_remote_code: bool = False,
    ) -> Path:
        """Writes a model folder with edits in it, which plain transformers loads; the folder.

        Every byte but the edited rows is the model's own. `in_place` changes the folder `model` itself instead of `output`.
        """
        from actstore.engine.edit.folders import FolderRequest, apply_to_folder

        place, edits, target = self._in_folder(names, output, model, in_place=in_place)
        return apply_to_folder(FolderRequest(place, edits, target, force, trust_remote_code))

    def revert(
        self,
        names: str | Sequence[str],
        output: str | Path | None = None,
        *,
        model: str | Path | None = None,
        in_place: bool = False,
        force: bool = False,
        trust_remote_code: bool = False,
    ) -> Path:
        """Writes a model folder without edits that are in it: its weights are again what they were, byte for byte."""
        from actstore.engine.edit.folders import FolderRequest, revert_in_folder

        place, edits, target = self._in_folder(names, output, model, in_place=in_place)
        return revert_in_folder(FolderRequest(place, edits, target, force, trust_remote_code))

    def evaluate(
        self,
        name: str,
        model: ModelInput | None = None,
        *,
        captures: Sequence[str] = (),
        cases: str | Path | None = None,
        perplexity: str | None = None,
        baselines: Sequence[str] | None = None,
        seeds: int = 3,
        generate: bool = False,
        max_new_tokens: int = 50,
        max_windows: int | None = None,
        options: ModelOptions | None = None,
    ) -> Answer[Evaluation]:
        """Tries an edit on its model: reliability, generality, locality, beside fine-tuning and random neurons.

        - `captures`: captures that try the edit, `NAME` or `NAME=KIND`; the edit's own unless given.
        - `cases`: a file of JSON lines: prompt, kind, target or answer, image.
        - `perplexity`: a capture, to compare the likelihood of its tokens.
        - `baselines`: `fine-tune`, `random`; both unless given.
        - `seeds`: number of draws per baseline.

        Columns: as `Evaluation.rows`, one row per method, draw and case.
        """
        from actstore.engine.edit.baselines import BASELINES
        from actstore.engine.edit.cases import read_cases
        from actstore.engine.edit.evaluate import EvaluationOptions, evaluate_edit

        edit = self[name]
        own = edit.record.settings.get("capture")
        named = list(captures) or ([] if cases is not None else [own or self._store.capture().record.name])
        pairs = tuple((text.partition("=")[0], text.partition("=")[2] or None) for text in named)
        asked = EvaluationOptions(
            captures=pairs,
            cases=tuple(read_cases(cases)) if cases is not None else (),
            perplexity=perplexity,
            baselines=tuple(BASELINES) if baselines is None else tuple(baselines),
            seeds=seeds,
            generate=generate,
            max_new_tokens=max_new_tokens,
            max_windows=max_windows,
        )
        opened = self._store.capture(own or (pairs[0][0] if pairs else None))
        with open_reader(opened, model, options) as reader:
            evaluation = evaluate_edit(reader, self._store, edit, asked, lambda done, total: None)
        return Answer(Table(pa.Table.from_pylist(evaluation.rows)), evaluation)

    def _in_folder(
        self, names: str | Sequence[str], output: str | Path | None, model: str | Path | None, *, in_place: bool
    ) -> tuple[str, list[Edit], str | Path | None]:
        from actstore.engine.models.fingerprint import location_of
        from actstore.store.errors import InvalidInputError

        if (output is None) != in_place:
            raise InvalidInputError(
                "Say where the model is written: `output`, a new folder, or `in_place=True`, one of the two."
            )
        edits = [self[name] for name in ([names] if isinstance(names, str) else names)]
        return str(location_of(self._store.model) if model is None else model), edits, output

    def delete(self, name: str) -> None:
        """Removes an edit from the store; models it was applied to stay as they are."""
        from actstore.store.edits import delete_edit

        delete_edit(self._writable(), name)

    def _writable(self) -> Any:
        from actstore.store.storage.folder import Folder

        return Folder(self._store.folder, read_only=False)

    def _check_free(self, name: str, *, force: bool) -> None:
        from actstore.store.edits import check_name
        from actstore.store.errors import InvalidInputError

        check_name(name)
        if name in self and not force:
            raise InvalidInputError(
                f"{self._store.folder} already has an edit {name!r}. Give another `name`, or replace it with `force=True`."
            )

    def _keep(self, edit: Edit, *, force: bool) -> Edit:
        from actstore.store.edits import write_edit

        write_edit(self._writable(), edit, replace=force)
        return edit
