"""`store.change`: the neurons that act most differently in two models, and what patching them does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from actstore.api.light import explains
from actstore.api.method import Method
from actstore.api.models import open_model
from actstore.api.results import Answer
from actstore.store.neurons import neuron_columns
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from actstore.api.models import ModelOptions
    from actstore.engine.change.activation_patching import PatchingEvaluation
    from actstore.engine.change.change import Change
    from actstore.engine.models.in_memory import ModelInput
    from actstore.store.capture.captures import Captures


@explains
class ChangeMethod(Method):
    """Safety neurons by change scores (Chen et al. 2024): `store.change(other)`."""

    _reached_as = "store.change"

    def __call__(
        self,
        other: Captures | str | Path,
        *,
        share: float = 0.05,
        k: int | None = None,
        site: str = "mlp.post",
        positions: str = "counted",
        capture: str | None = None,
        other_capture: str | None = None,
        workers: int | None = None,
        on: str = "local",
    ) -> Answer[Change]:
        """The neurons whose activations differ most between two models: root mean square difference, over every layer.

        - `other`: the store of the other model, open or where it is; its capture is of the same corpus with the same settings.
        - `share`: share of all neurons that is selected.
        - `k`: maximum number of neurons in the table; all selected ones unless given.
        - `positions`: which positions count, one of `store.capture.positions.POSITIONS`.
        - `capture`: name of the capture; `other_capture` of the other store's, the same unless given.
        - `workers`: number of processes that blocks are divided among.
        - `on`: where they run: `local`, `ray` or `ray://HOST:PORT`.

        Columns: name, layer, neuron, score; largest first.

        >>> store.change("tuned.actstore", share=0.05).table
        """
        from actstore.engine.change.change import change_scores, check_share
        from actstore.engine.workers.scan import executor_of
        from actstore.store.capture.captures import Captures

        check_share(share)
        opened = other if isinstance(other, Captures) else Captures(other)
        change = change_scores(
            self._store.capture(capture),
            opened.capture(other_capture or capture),
            site=site,
            positions=positions,
            executor=executor_of(workers, on),
        )
        selected = change.top(share)[:k]
        table = pa.table(
            neuron_columns(change.layer[selected], change.neuron[selected]) | {"score": change.scores[selected]}
        )
        warnings = (*change.warnings, *([change.nothing_differs] if change.nothing_differs else []))
        return Answer(Table(table), change, warnings)

    def patch(
        self,
        other: Captures | str | Path,
        prompts: Sequence[str],
        *,
        model: ModelInput | None = None,
        other_model: ModelInput | None = None,
        share: float = 0.05,
        scorer: str | Callable[[str, str], float] = "refusal",
        pattern: str | None = None,
        function: str | None = None,
        chat: bool | None = None,
        max_new_tokens: int = 32,
        random: int = 3,
        seed: int = 0,
        positions: str = "counted",
        capture: str | None = None,
        other_capture: str | None = None,
        options: ModelOptions | None = None,
    ) -> Answer[PatchingEvaluation]:
        """Dynamic activation patching: the model generates with the other model's activations in place of changed neurons'.

        Both models are in memory at once.

        - `prompts`: texts that are continued.
        - `model`: this store's model, by name, path or loaded; `other_model` the other's; the stores' own unless given.
        - `scorer`: `refusal`, `regex` (whether the generation matches `pattern`), `likelihood` (mean log p under the other),
          `function` (what that of the name `function` gives, such as "scores:toxicity"), or a function itself, of the texts of
          prompt and generation.
        - `chat`: whether prompts go through the tokenizer's chat template; where it has one unless given.
        - `max_new_tokens`: maximum number of generated tokens.
        - `random`: number of draws of as many random neurons of the same layers.
        - `seed`: random seed.

        Columns: neurons (`changed`, `random`), number, score, effect (1 where patching closes the gap between the models).
        """
        from actstore.engine.change.activation_patching import Donor, PatchingSettings, evaluate_patching
        from actstore.engine.change.prompts import check_scorer, encode_prompts, make_scorer
        from actstore.engine.models.fingerprint import check_model, fingerprint_of
        from actstore.store.capture.captures import Captures

        PatchingSettings(max_new_tokens, random, seed)  # refused before anything is loaded
        check_scorer(scorer, pattern, function)
        opened = other if isinstance(other, Captures) else Captures(other)
        answer = self(opened, share=share, positions=positions, capture=capture, other_capture=other_capture)
        change = answer.details
        change.check_difference()
        trusted = options is not None and options.trust_remote_code
        with (
            open_model(self._store, model, options) as (first, name),
            open_model(opened, other_model, options) as (second, other_name),
        ):
            for root, loaded, title in ((self._store, first, name), (opened, second, other_name)):
                check_model(root.folder, root.model.fingerprint, fingerprint_of(loaded), title)
            ids, stop = encode_prompts(prompts, name, other_name, first, trust_remote_code=trusted, chat=chat)
            result = evaluate_patching(
                first,
                Donor(second, change.by_layer(change.top(share))),
                ids,
                make_scorer(scorer, pattern, function, second, self._store),
                PatchingSettings(max_new_tokens, random, seed, stop),
            )
        rows = [
            {"neurons": kind, "number": one.n_neurons, "score": float(one.scores.mean()), "effect": one.effect}
            for kind, one in [("changed", result.patched), *(("random", one) for one in result.random)]
        ]
        return Answer(Table(pa.Table.from_pylist(rows)), result, answer.warnings)
