"""`store.multimodal`: neurons that carry an image's concepts into words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actstore.api.light import explains
from actstore.api.method import Method
from actstore.api.models import open_replay
from actstore.api.neurons import neuron_pairs
from actstore.api.results import Answer
from actstore.store.neurons import neuron_columns
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from actstore.api.models import ModelOptions
    from actstore.api.neurons import NeuronInput
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.multimodal.causal import Effect
    from actstore.engine.multimodal.patch_maps import PatchMap
    from actstore.engine.multimodal.properties import Summary
    from actstore.engine.multimodal.result import Multimodal


@explains
class MultimodalMethod(Method):
    """Multi-modal neurons (Pan et al. 2024, arXiv 2311.07470): `store.multimodal(…)`, `.map`, `.saliency`."""

    _reached_as = "store.multimodal"

    def __call__(
        self,
        *,
        k: int = 20,
        nouns: str = "auto",
        activation: str = "post",
        gain: bool = True,
        document: int | Sequence[int] | None = None,
        output: str | Path | None = None,
        map_of: str = "contribution",
        capture: str | None = None,
        device: str = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> Answer[Multimodal]:
        """The neurons that carry each noun of each caption, ranked over all layers of the language model.

        - `k`: number of neurons per noun.
        - `nouns`: how nouns are told from other words: `auto`, `spacy`, `nltk`, `content`, or a file with a noun per line.
        - `activation`: what counts as activation: `post`, `gate` (the paper's code), or `both`.
        - `gain`: weigh by the final norm's gain; without, the paper's form.
        - `document`: number of a document, or several; all unless given.
        - `output`: a folder in which the image regions of each noun's neurons are drawn, one PNG per noun.
        - `map_of`: what the pictures show: `contribution` (to the noun), or `activation`.
        - `device`: what multiplies and ranks: `auto`, `cpu`, `cuda` or `cuda:1`.
        - `progress`: called with the layers done and their number.

        Columns: document, noun, form, name, layer, neuron, score; best first.

        >>> store.multimodal(k=5).table
        """
        from actstore.engine.devices.device import find_device
        from actstore.engine.multimodal.find import find_multimodal
        from actstore.engine.multimodal.result import FORMS, FindSettings
        from actstore.store.capture.saturation import overflow_sentences
        from actstore.store.capture.tokens.write_scale import scale_sentences
        from actstore.store.exports.outputs import output_folder

        forms: Any = tuple(FORMS) if activation == "both" else (activation,)  # checked by the settings
        numbers = None if document is None else (document,) if isinstance(document, int) else tuple(document)
        settings = FindSettings(k, nouns, forms, gain, documents=numbers)
        folder = None if output is None else output_folder(output)
        opened = self._store.capture(capture)
        on_layer = progress or (lambda done, n_layers: None)
        multimodal = find_multimodal(opened, settings, on_layer, find_device(device))
        if folder is not None:
            from actstore.display.patch_pictures import draw_nouns

            list(draw_nouns(multimodal, folder, map_of))
        approximate = scale_sentences(opened) if gain else []
        overflows = overflow_sentences(opened, [FORMS[one].site for one in forms])
        return Answer(_table(multimodal), multimodal, (*approximate, *overflows))

    def map(
        self,
        neurons: NeuronInput | Iterable[NeuronInput],
        document: int,
        *,
        site: str = "mlp.post",
        capture: str | None = None,
    ) -> Answer[PatchMap]:
        """Where on an image neurons look: the mean of their activations at each patch of a document's image.

        Columns: row, column, left, top, right, bottom (pixels), value. `details.values` and `details.grid` are the map.
        """
        from actstore.engine.multimodal.patch_maps import NeuronSet, map_neurons
        from actstore.store.errors import InvalidInputError

        opened = self._store.capture(capture)
        maps = map_neurons(opened, {document: [NeuronSet(neuron_pairs(neurons))]}, site)
        patch_map = next((one for _, _, one in maps), None)
        if patch_map is None:
            raise InvalidInputError(f"Capture {opened.record.name!r} keeps no image position of document {document}.")
        grid = patch_map.grid
        box = np.asarray(grid.box)
        columns = {name: box[:, i] for i, name in enumerate(("left", "top", "right", "bottom"))}
        table = pa.table({"row": grid.row, "column": grid.column, **columns, "value": patch_map.values})
        return Answer(Table(table), patch_map)

    def properties(
        self,
        model: ModelInput | None = None,
        *,
        regions: str | None = None,
        shuffled: str | None = None,
        gradient: bool = False,
        k: int = 20,
        nouns: str = "auto",
        gain: bool = True,
        seed: int = 0,
        capture: str | None = None,
        options: ModelOptions | None = None,
    ) -> Answer[dict[str, dict[str, Summary]]]:
        """Sensitivity, invariances, specificity and discrimination of the neurons found, beside baselines.

        - `regions`: what is permuted for region invariance: `embeddings`, the patches among the language model's input
          embeddings, as published, which runs the model; `pixels`, those of images, with `shuffled`; `none`. Unless given,
          `embeddings`, or `pixels` with `shuffled`.
        - `shuffled`: the capture of the images with their patches shuffled.
        - `gradient`: rank by activation × gradient too, which runs the model.
        - `seed`: random seed of the order of patches and of the random ranking.

        Columns: ranking, property, mean, sd, n (nouns).
        """
        from actstore.engine.multimodal.properties import PropertySource
        from actstore.engine.multimodal.result import FindSettings

        source = PropertySource.of(self._store, capture, shuffled, regions, gradient=gradient)
        settings = FindSettings(k, nouns, gain=gain, seed=seed)
        _, measured = source.measure(settings, lambda images: open_replay(images, model, options))
        rows = [
            {"ranking": name, "property": key, "mean": one.mean, "sd": one.sd, "n": one.n}
            for name, every in measured.items()
            for key, one in every.items()
        ]
        return Answer(Table(pa.Table.from_pylist(rows)), measured)

    def causal(
        self,
        model: ModelInput | None = None,
        *,
        k: int = 20,
        nouns: str = "auto",
        sigma: float = 10.0,
        max_nouns: int | None = 100,
        gradient: bool = True,
        seed: int = 0,
        capture: str | None = None,
        options: ModelOptions | None = None,
    ) -> Answer[dict[str, Effect]]:
        """Adds noise to the write vectors of each noun's neurons, and measures whether the model still says the noun.

        - `sigma`: size of the noise, in multiples of the root mean square of a layer's write vectors.
        - `max_nouns`: maximum number of nouns, drawn at random; None takes all.
        - `gradient`: rank by activation × gradient too.

        Columns: ranking, gone (share of nouns no longer said), changed (share of answers), drop (of the probability).
        """
        from actstore.engine.multimodal.causal import CausalSettings, causal_effect, choose_nouns
        from actstore.engine.multimodal.properties import rankings_of, summarise
        from actstore.engine.multimodal.result import FindSettings

        settings = CausalSettings(sigma, seed, max_nouns)
        opened = self._store.capture(capture)
        with open_replay(opened, model, options) as replay:
            rankings = rankings_of(
                opened,
                FindSettings(k, nouns, seed=seed),
                replay if gradient else None,
                lambda found: choose_nouns(found, settings),
            )
            effects = causal_effect(rankings, replay, settings, lambda done, total: None)
        rows = [
            {
                "ranking": name,
                "gone": float(effect.gone.mean()),
                "changed": float(effect.changed.mean()),
                "drop": summarise(effect.drop).mean,
            }
            for name, effect in effects.items()
        ]
        return Answer(Table(pa.Table.from_pylist(rows)), effects)

    def saliency(
        self,
        model: ModelInput | None = None,
        *,
        k: int = 20,
        nouns: str = "auto",
        document: int | Sequence[int] | None = None,
        max_nouns: int | None = 100,
        output: str | Path | None = None,
        seed: int = 0,
        capture: str | None = None,
        options: ModelOptions | None = None,
    ) -> Answer[dict[str, dict[int, PatchMap]]]:
        """Which patches a noun depends on: the gradient of its logit to what the language model reads of each patch.

        Beside it the maps of the noun's neurons, and random ones: how its probability falls while patches are taken away in the
        order of each map, and rises while they are given back.

        - `k`: number of neurons per noun, for the maps of neurons.
        - `document`: number of a document, or several; all unless given.
        - `max_nouns`: maximum number of nouns, drawn at random; None takes all.
        - `output`: a folder in which the maps by the gradient are drawn, one PNG per noun.
        - `seed`: random seed of the nouns and of the random maps.

        Columns: map, deletion, insertion (means of the noun's probability over that with all patches), and their standard
        deviations over nouns, `deletion_sd` and `insertion_sd`; n (nouns). `details` holds the maps: kind → number of a noun →
        map.
        """
        from actstore.display.patch_pictures import draw_noun_maps
        from actstore.engine.multimodal.causal import CausalSettings, choose_nouns
        from actstore.engine.multimodal.faithfulness import (
            GRADIENT,
            every_map,
            faithfulness_table,
            measure_faithfulness,
        )
        from actstore.engine.multimodal.find import find_multimodal
        from actstore.engine.multimodal.result import FindSettings
        from actstore.store.exports.outputs import output_folder

        numbers = None if document is None else (document,) if isinstance(document, int) else tuple(document)
        folder = None if output is None else output_folder(output)
        opened = self._store.capture(capture)
        result = find_multimodal(opened, FindSettings(k, nouns, documents=numbers))
        chosen = choose_nouns(result, CausalSettings(seed=seed, max_nouns=max_nouns))
        with open_replay(opened, model, options) as replay:
            maps = every_map(result, replay, chosen, seed)
            measured = measure_faithfulness(result, replay, maps)
        if folder is not None:
            draw_noun_maps(result, folder, maps[GRADIENT].items())
        return Answer(Table(faithfulness_table(measured)), maps)

    def shuffle(
        self,
        images: str | Path,
        output: str | Path,
        *,
        patch: int = 8,
        seed: int = 0,
        captions: bool = False,
        capture: str | None = None,
    ) -> list[str]:
        """Images with their patches shuffled, in the folder `output`, for `properties(shuffled=…)`; files that are no images.

        - `patch`: pixels of a patch, each way: the model's own, or a multiple.
        - `captions`: write the capture's answers as captions, so that the shuffled images are captured with them.
        """
        from actstore.engine.multimodal.describe import answers_by_image
        from actstore.engine.multimodal.shuffle import shuffle_images

        answers = answers_by_image(self._store.capture(capture)) if captions else None
        return list(shuffle_images(Path(images), output, patch=patch, seed=seed, captions=answers).unreadable)


def _table(multimodal: Multimodal) -> Table:
    documents, nouns, forms, scores, numbers = [], [], [], [], []
    for form, ranked in multimodal.ranked.items():
        for noun, values, ids in zip(multimodal.nouns, ranked.values, ranked.tokens, strict=True):
            named = ids[ids >= 0]
            documents += [multimodal.captions[noun.caption].document] * len(named)
            nouns += [noun.word] * len(named)
            forms += [form] * len(named)
            scores += values[ids >= 0].tolist()
            numbers += named.tolist()
    columns = {
        "document": pa.array(documents, pa.int32()),
        "noun": pa.array(nouns, pa.string()),
        "form": pa.array(forms, pa.string()),
        **neuron_columns(*multimodal.numbering.locate(np.array(numbers, np.int64))),
        "score": pa.array(scores, pa.float32()),
    }
    return Table(pa.table(columns))
