"""`store.edits`: edits that a store holds, made, applied, judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actstore.api.light import explains
from actstore.api.method import Method
from actstore.api.models import open_reader
from actstore.api.neurons import check_one_given, neuron_pairs
from actstore.api.results import Answer
from actstore.store.neurons import neuron_name
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from actstore.api.models import ModelOptions
    from actstore.api.neurons import NeuronInput
    from actstore.engine.edit.erasure import ErasureEvaluation
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

    def erase(
        self,
        by: str,
        value: str,
        *,
        k: int = 20,
        questions: str | None = None,
        name: str | None = None,
        force: bool = False,
    ) -> Edit:
        """Erases a relation (Dai et al. 2022): the `k` knowledge neurons that most of its facts share write nothing.

        - `by`, `value`: the facts are the queries of stored attributions whose label `by` has this value.
        - `questions`: the capture of questions; the only one with attributions unless given.
        - `name`: name of the edit; the value and `erase` unless given.

        >>> store.edits.erase("relation_name", "geography")
        """
        from actstore.engine.edit.erasure import erase

        title = name or f"{value}-erase".replace("/", "-")
        self._check_free(title, force=force)
        return self._keep(erase(self._store, title, by, value, k=k, questions=questions), force=force)

    def rewrite(
        self,
        old: str | None = None,
        new: str | None = None,
        *,
        prompt: str | Sequence[str] = (),
        target: str | None = None,
        subject: str | None = None,
        cases: str | Path | None = None,
        row: Sequence[int] = (),
        images: str | Path | None = None,
        method: str = "least-norm",
        name: str | None = None,
        neurons: NeuronInput | Iterable[NeuronInput] | None = None,
        k: int | None = None,
        layers: Sequence[int] | None = None,
        margin: float | None = None,
        control: float = 1.0,
        ridge: float = 0.001,
        max_documents: int | None = None,
        examples: int = 8,
        steps: int = 50,
        rate: float = 0.001,
        per_position: int = 5,
        leave_last: int = 3,
        seed: int = 0,
        queries: Sequence[str] = (),
        questions: str | None = None,
        path_steps: int = 20,
        capture: str | None = None,
        model: ModelInput | None = None,
        options: ModelOptions | None = None,
        force: bool = False,
    ) -> Edit:
        """Makes the model say one word in place of another, or a target after a prompt, by changing rows of a few neurons.

        - `old`, `new`: two words; or, in their place, the following.
        - `prompt`, `target`: what should follow one or more wordings of a prompt, with the blank before it.
        - `subject`: what the prompt is about: of the capture, only facts of it may change with the edit.
        - `cases`: a file of prompts, targets and tests, plain, or as CounterFact, zsRE or MMEdit have it.
        - `row`, `images`: only these rows of it, from 1; the folder of its images.
        - `method`: `least-norm` (no model runs for words of one token), `fine`, `knowledge` (as published),
          `knowledge-corrected`, or `fine-tune`, the baseline.
        - `name`: name of the edit; the words or the target, and the method, unless given.
        - `neurons`: names or (layer, index); or `layers`, in which they are found; found in all unless given.
        - `k`: number of neurons (least-norm, knowledge); as few as do, or those that prompts share, unless given.
        - `margin`, `control`, `ridge`: how far ahead the new word's logit is put (2; of prompts 8), the weight of positions
          that must not change, the weight of the change's own size (least-norm).
        - `max_documents`: learn from the capture's first documents only.
        - `examples`, `steps`, `rate`, `per_position`, `leave_last`, `seed`: of the learned methods.
        - `queries`, `questions`: queries of stored attributions whose neurons are rewritten, and their capture (knowledge).
        - `path_steps`: steps of the integrated gradients by which neurons are found otherwise (knowledge).
        - `force`: replace an edit of that name.

        >>> store.edits.rewrite("red", "green", k=10)
        >>> store.edits.rewrite(prompt="The capital of Germany is", target=" Ankara")
        """
        from actstore.engine.edit.requests.files import requests_of
        from actstore.engine.edit.rewrite import default_name, needs_model, rewrite
        from actstore.engine.edit.settings import FineSettings, KnowledgeSettings, LeastNormSettings, RewriteSettings

        check_one_given(neurons, layers)
        prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
        requests = requests_of(prompts, target, subject, cases, row, images)
        pairs = tuple(neuron_pairs(neurons)) if neurons is not None else None
        chosen = tuple(layers) if layers is not None else None
        least = LeastNormSettings(k, chosen, None, margin, control, ridge=ridge, max_documents=max_documents)
        fine = FineSettings(per_position, leave_last, rate, steps)
        knowledge = KnowledgeSettings(tuple(queries), questions, path_steps)
        settings = RewriteSettings(old, new, method, pairs, least, fine, knowledge, examples, seed, requests)
        opened = self._store.capture(capture)
        title = name or default_name(settings)
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

    def evaluate(
        self,
        name: str,
        model: ModelInput | None = None,
        *,
        captures: Sequence[str] = (),
        cases: str | Path | None = None,
        row: Sequence[int] = (),
        images: str | Path | None = None,
        answers_after: str | None = None,
        perplexity: str | None = None,
        baselines: Sequence[str] | None = None,
        seeds: int = 3,
        generate: bool = False,
        max_new_tokens: int = 50,
        max_windows: int | None = None,
        options: ModelOptions | None = None,
    ) -> Answer[Evaluation] | Answer[ErasureEvaluation]:
        """Tries an edit on its model: reliability, generality, locality, beside fine-tuning and random neurons.

        - `captures`: captures that try the edit, `NAME` or `NAME=KIND`; without `cases`, the edit's own prompts or capture.
        - `cases`: a file of JSON lines: prompt, kind, target or answer, image; or one that `rewrite` takes.
        - `row`, `images`: only these rows of it, from 1; the folder of its images.
        - `answers_after`: what answers follow in texts: positions before it are reported apart.
        - `perplexity`: a capture, to compare the likelihood of its tokens.
        - `baselines`: `fine-tune`, `random`; both unless given.
        - `seeds`: number of draws per baseline.

        Columns: as `Evaluation.rows`, one row per method, draw and case; of an edit that erases a relation, without captures
        and cases, as `ErasureEvaluation.rows`.
        """
        from actstore.engine.edit.baselines import BASELINES
        from actstore.engine.edit.erasure import FORM, evaluate_erasure
        from actstore.engine.edit.evaluate import EvaluationOptions, evaluate_edit, own_tests
        from actstore.engine.edit.requests.files import read_cases

        edit = self[name]
        compared = tuple(BASELINES) if baselines is None else tuple(baselines)
        if edit.record.form == FORM and not captures and cases is None:
            questions = self._store.capture(edit.record.settings["questions"])
            with open_reader(questions, model, options) as reader:
                draws = seeds if "random" in compared else 0
                erasure = evaluate_erasure(reader, self._store, edit, seeds=draws)
            return Answer(Table(pa.Table.from_pylist(erasure.rows)), erasure)
        named = tuple((text.partition("=")[0], text.partition("=")[2] or None) for text in captures)
        tested = tuple(read_cases(cases, row, images)) if cases is not None else ()
        if not named and cases is None:
            named, tested = own_tests(edit, self._store)
        asked = EvaluationOptions(
            named, tested, perplexity, compared, seeds, generate, max_new_tokens, max_windows, answers_after
        )
        opened = self._store.capture(edit.record.settings.get("capture") or (named[0][0] if named else None))
        with open_reader(opened, model, options) as reader:
            evaluation = evaluate_edit(reader, self._store, edit, asked, lambda done, total: None)
        return Answer(Table(pa.Table.from_pylist(evaluation.rows)), evaluation)

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
