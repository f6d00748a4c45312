"""A store as users handle it: what it holds, and every method as a method of it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.api.change import ChangeMethod
from actstore.api.coactivation import answer_coactivation
from actstore.api.coverage import CoverageMethod
from actstore.api.edit import EditsMethod
from actstore.api.explain import ExplainMethod
from actstore.api.graphs import GraphsMethod
from actstore.api.light import explained, explains
from actstore.api.multimodal import MultimodalMethod
from actstore.api.naica import NaicaMethod, knowledge_neurons
from actstore.api.neurons import chosen_neurons
from actstore.api.selectivity import SelectivityMethod
from actstore.store import reader
from actstore.store.arguments import argument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import xarray

    from actstore.api.neurons import NeuronInput
    from actstore.api.results import Answer
    from actstore.engine.coactivation.coactivation import Coactivations
    from actstore.engine.coactivation.nearest import NearestNeurons
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.repair.outcome import RepairReport
    from actstore.store.batches.loader import Batches
    from actstore.store.capture.questions.attributions import Attributions
    from actstore.store.capture.reader import Capture
    from actstore.store.damage import Damage
    from actstore.store.table import Table


@explains
class Store(reader.Store):
    """One model's captures, and what can be asked of them. `actstore.open` gives one.

    >>> store = actstore.open("gpt2.actstore")
    >>> store.neurons()                                   # statistics, one row per neuron
    >>> store.neuron("L3.N17").show()                     # exemplars
    >>> store.contributions(" Paris")                     # the neurons that write a token
    >>> store.selectivity(by="language").table            # the neurons of a label
    >>> store.coactivation("L3.N17").table                # the neurons that fire with one
    >>> store.graphs.build(); store.graph("L3.N17").draw()
    """

    contributions = explained(reader.Store.contributions)
    graph = explained(reader.Store.graph)

    @cached_property
    def naica(self) -> NaicaMethod:
        """Neurons relevant to queries: `store.naica(by="domain")`, `store.naica.evaluate()`."""
        return NaicaMethod(self)

    @cached_property
    def selectivity(self) -> SelectivityMethod:
        """Neurons that fire for one label only: `store.selectivity(by="language")`, `.evaluate(…)`, `.lens()`."""
        return SelectivityMethod(self)

    @cached_property
    def change(self) -> ChangeMethod:
        """Neurons that act differently in another model: `store.change("tuned.actstore")`."""
        return ChangeMethod(self)

    @cached_property
    def coverage(self) -> CoverageMethod:
        """Coverage criteria: `store.coverage(reference="corpus")`, `store.coverage.probe(…)`."""
        return CoverageMethod(self)

    @cached_property
    def explain(self) -> ExplainMethod:
        """Neurons in words, by a language model's server, and scored: `store.explain("L3.N17", endpoint=…)`, `.table()`."""
        return ExplainMethod(self)

    @cached_property
    def graphs(self) -> GraphsMethod:
        """Neuron graphs: `store.graphs.build()`, `.search("York")`, `.similar("L3.N17")`, `.evaluate()`, `.probe()`."""
        return GraphsMethod(self)

    @cached_property
    def multimodal(self) -> MultimodalMethod:
        """Neurons that carry an image's concepts into words: `store.multimodal(k=5)`, `.map(…)`, `.properties()`."""
        return MultimodalMethod(self)

    @cached_property
    def edits(self) -> EditsMethod:
        """Edits: `list(store.edits)`, `store.edits["name"]`, `.rewrite("red", "green")`, `.apply(…)`, `.evaluate(…)`."""
        return EditsMethod(self)

    def attributions(self, capture: str | None = None) -> Attributions:
        """The stored attributions of a capture of questions; of the only one unless named."""
        from actstore.store.capture.questions.attributions import open_attributions

        return open_attributions(self, capture)

    def knowledge(
        self,
        *,
        attribution: str = "ig",
        keep: float = 0.2,
        share: float = 0.7,
        at_least: int = 2,
        at_most: int = 5,
        capture: str | None = None,
    ) -> Table:
        """Knowledge neurons (Dai et al. 2022): the neurons that most prompts of a query share. Needs no model.

        - `attribution`: the kind of stored attribution that is read.
        - `keep`: share of a prompt's largest score that a neuron must reach.
        - `share`: share of the prompts that must keep a neuron, to begin with.
        - `at_least`: fewer neurons lower the share; `at_most`: more neurons raise it.

        Columns: query, name, layer, neuron, n_prompts (that keep it), share. The log says where queries have too few prompts.
        """
        return knowledge_neurons(self, attribution, keep, share, at_least, at_most, capture)

    def coactivation(
        self,
        neuron: NeuronInput | None = None,
        *,
        sort: str = "correlation",
        k: int = 20,
        threshold: float = 0.0,
        layers: Sequence[int] | None = None,
        within_layers: bool = False,
        site: str = "mlp.post",
        positions: str = "counted",
        output: str | Path | None = None,
        capture: str | None = None,
        device: str = "auto",
        workers: int | None = None,
        on: str = "local",
    ) -> Answer[Coactivations] | Answer[NearestNeurons]:
        """The neurons that fire with `neuron`, or without one every neuron's nearest: by correlation, or by common tokens.

        - `neuron`: `"L3.N17"` or `(3, 17)`; all pairs of neurons are compared unless given.
        - `sort`: which are nearest, those of the largest `correlation` or `jaccard`.
        - `k`: number of neurons, for each where all are compared.
        - `threshold`: a neuron fires where its activation is larger.
        - `layers`: layers whose neurons are looked through, all unless given; `within_layers`: each neuron's own only.
        - `positions`: which positions count, one of `store.capture.positions.POSITIONS`.
        - `output`: a .parquet file for the table.
        - `device`: what compares: `auto`, `cpu`, `cuda` or `cuda:1`.
        - `workers`: number of processes that blocks are divided among, or where all pairs are compared tiles of them.
        - `on`: where they run: `local`, `ray` or `ray://HOST:PORT`.

        Columns: name, layer, neuron, correlation, jaccard, both_fire, fires, tokens; without `neuron`, other_name, … of the
        neighbour, too. What counts is in docs/methods/coactivation.md.

        >>> store.coactivation("L3.N17", k=5).table
        """
        from actstore.engine.coactivation.settings import CoactivationSettings
        from actstore.engine.devices.device import find_device
        from actstore.engine.workers.scan import executor_of

        chosen = argument("layers", layers, tuple[int, ...] | None)
        settings = CoactivationSettings(sort, k, threshold, chosen, within_layers, site, positions)
        executor, target = executor_of(workers, on), find_device(device, on)
        return answer_coactivation(self.capture(capture), neuron, settings, output, executor, target)

    def batches(
        self,
        site: str | Sequence[str],
        layers: int | Sequence[int],
        *,
        batch: int = 4096,
        shuffle: bool = True,
        seed: int = 0,
        window: int = 4,
        labels: str | Sequence[str] = (),
        where: str | None = None,
        positions: str = "counted",
        skip: int = 0,
        dtype: Any = "float32",
        normalize: str | None = None,
        epochs: int = 1,
        drop_last: bool = False,
        rank: int | None = None,
        ranks: int | None = None,
        threads: int = 1,
        device: Any = "cpu",
        as_numpy: bool = False,
        capture: str | None = None,
    ) -> Batches:
        """Activations of tokens in random order, to train on: batches [token, neuron] with the tokens' ids, places and labels.

        - `site`, `layers`: what stands side by side in a batch; `batch.layer(3)` is the part of one layer.
        - `batch`: tokens of a batch.
        - `shuffle`: blocks are permuted, then all tokens of `window` blocks together, by `seed`, each epoch anew.
        - `labels`: label columns that batches have, as numbers among `batches.label_values`.
        - `where`: a condition of SQL on the columns of the documents table, such as `"language = 'de'"`.
        - `positions`: which positions count, one of `store.capture.positions.POSITIONS`; `skip`: leaves out as many at the
          beginning of each window.
        - `dtype`: float32, float16 or bfloat16.
        - `normalize`: "neuron" for (x - mean) / std of each, "norm" for a mean squared norm of the number of neurons.
        - `epochs`: epochs that one iteration passes, every token once in each; `drop_last`: but those of a last, shorter batch.
        - `rank`, `ranks`: which part of how many, disjoint and of as many batches [those of a distributed run of torch].
        - `threads`: threads that read ahead; memory then holds two windows.
        - `device`: where tensors are; `as_numpy`: arrays instead, as without torch.

        The batches of a seed are the same whatever reads them: workers of a `DataLoader(batches, batch_size=None)`, a resumed
        run (`state_dict`, `load_state_dict`), a store on another storage. docs/training.md has the whole.

        >>> for batch in store.batches("resid.post", 3, labels="language"):
        ...     loss = model(batch.activations)
        """
        from actstore.api.batches import batches_of

        settings = {
            "sites": site, "layers": layers, "batch": batch, "shuffle": shuffle, "seed": seed, "window": window,
            "labels": labels, "where": where, "positions": positions, "skip": skip, "dtype": dtype,
            "normalize": normalize, "epochs": epochs, "drop_last": drop_last, "rank": rank, "ranks": ranks,
            "threads": threads,
        }  # fmt: skip
        return batches_of(self, settings, capture, device, as_numpy=as_numpy)

    def info(self) -> dict[str, Any]:
        """What the store holds, as `actstore info --json` says it."""
        from actstore.display.reports import describe_store

        return describe_store(self)

    def export(
        self,
        output: str | Path,
        neurons: NeuronInput | Iterable[NeuronInput] | None = None,
        *,
        layers: Sequence[int] | None = None,
        site: str = "mlp.post",
        capture: str | None = None,
        format: str | None = None,
    ) -> int:
        """Writes activations of some neurons over all tokens to a file, or a folder of another tool's; the number of tokens.

        - `format`: "parquet", "csv", "npy", "safetensors", "dashboard" (JSON lines of SAEDashboard's features), or a folder:
          "datasets" (for `load_from_disk`), "delphi" (for its LatentDataset), "neuronpedia" (batches of JSON) [by the suffix]

        >>> store.export("l3.parquet", ["L3.N17", "L3.N18"])
        >>> store.export("latents", layers=[3], format="delphi")
        """
        from actstore.api.exporting import correlated_neurons
        from actstore.store.exports.export import export_activations, format_of

        opened = self.capture(capture)
        pairs = chosen_neurons(opened, site, neurons, layers) or []
        name = format_of(Path(output), format)
        correlated = correlated_neurons(opened, pairs, site, name)
        return export_activations(opened, output, neurons=pairs, site=site, format=name, correlated=correlated)

    def xarray(
        self,
        *,
        layers: Sequence[int] | None = None,
        site: str = "mlp.post",
        capture: str | None = None,
        chunked: bool | None = None,
    ) -> xarray.Dataset:
        """An `xarray.Dataset` of a capture, decoded as it is read: a variable [token, neuron] per layer, texts, labels.

        - `chunked`: whether variables are dask arrays, a chunk per block [where dask is installed]

        >>> store.xarray(layers=[3]).L3.groupby("language").mean("token")
        """
        from actstore.store.exports.xarray_view import open_dataset

        chosen = argument("layers", layers, tuple[int, ...] | None)
        return open_dataset(self.capture(capture), site, chosen, chunked=chunked)

    def reorder(
        self, order: str, *, capture: str | None = None, on_block: Callable[[int, int], None] | None = None
    ) -> Capture:
        """Puts values of a capture into another order on disk, without the model: whole, or not at all; it, opened anew.

        - `order`: "neuron" or "token", or by site, "mlp.post=token"; sites that are not named stay as they are.
        - `on_block`: told after each block how many are written, and how many there will be.

        >>> store.reorder("mlp.post=token")
        """
        from actstore.store.transfer.reorder import reorder_capture

        name, text = argument("capture", capture, str | None), argument("order", order, str)
        return self.reopened(reorder_capture(self.folder, name, text, on_block or (lambda done, total: None)))

    def fill_top_tokens(self) -> int:
        """Adds the tokens that each neuron promotes and suppresses to the table `model` of SQL; the number of neurons.

        For stores whose capture left them out because they were too costly there. Needs torch, and the stored weights.
        """
        from actstore.store.model.top_tokens import fill_top_tokens
        from actstore.store.storage.folder import Folder

        return fill_top_tokens(Folder(self.folder, read_only=False))

    def verify(
        self,
        capture: str | None = None,
        *,
        refill: int = 0,
        model: ModelInput | None = None,
        images: str | None = None,
        device: str = "auto",
        trust_remote_code: bool = False,
        workers: int | None = None,
        on: str = "local",
    ) -> list[Damage]:
        """What of the store is damaged; nothing where it is what its records say.

        - `capture`: only this capture; without, all, and the store's own tables, tokenizer and weights.
        - `refill`: number of blocks per capture that are computed again with the model and compared.
        - `model`: where the model is, if not where it was.
        - `images`: where captured images are now.
        - `workers`: number of processes that blocks are divided among; the model runs in one.
        - `on`: where they run: `local`, `ray` or `ray://HOST:PORT`.
        """
        from actstore.api.verify import verify_store

        how = {"model": model, "images": images, "device": device, "trust_remote_code": trust_remote_code}
        return verify_store(self.folder, capture, workers, on, refill, how)

    def repair(
        self,
        capture: str | None = None,
        *,
        model: ModelInput | None = None,
        images: str | None = None,
        accept_differences: bool = False,
        device: str = "auto",
        trust_remote_code: bool = False,
    ) -> RepairReport:
        """Makes again what `verify` finds damaged; what was repaired, and what was not and why. Open the store anew then.

        - `capture`: only this capture; without, all, and the store's own tables, tokenizer and weights.
        - `model`: where the model is, if not where it was; it is loaded where a block or the root needs it.
        - `images`: where captured images are now.
        - `accept_differences`: write blocks anew that are now computed with other bytes than were written.

        >>> print(store.repair())
        """
        from actstore.engine.repair.outcome import RepairOptions
        from actstore.engine.repair.repair import repair_store

        options = RepairOptions(model, images, device, trust_remote_code, accept_differences)
        return repair_store(self.folder, capture, options)
