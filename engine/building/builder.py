"""`actstore.CaptureBuilder`: arrays that people have, as a capture of a store."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from actstore.engine.building import filling, root
from actstore.engine.building.arrays import check_finite, converted, places
from actstore.engine.building.sequences import GivenSequences, SequencesOf, Vocabulary, sequences_of
from actstore.engine.building.settings import BuildSettings, NonFinite
from actstore.engine.building.spool import Spool
from actstore.engine.capture.run import RunOptions, check_options
from actstore.engine.models.fingerprint import check_root, fingerprint_of, model_record
from actstore.store.arguments import argument, given_fields
from actstore.store.calls import checks
from actstore.store.capture.tokens.order import order_of_sites
from actstore.store.capture.writer import create_capture
from actstore.store.errors import InvalidInputError
from actstore.store.files.parquet import read_metadata
from actstore.store.layout import LOCK_NAME, VOCABULARY_KEY, capture_key
from actstore.store.model.root import is_store, read_root, read_vocabulary
from actstore.store.reader import Store
from actstore.store.sites import check_blocks, parse_hook
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own
from actstore.store.tokens import UNKNOWN, known_as

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from transformers import PreTrainedTokenizerBase

    from actstore.engine.building.arrays import Place, Rows
    from actstore.engine.building.sequences import Sequences
    from actstore.engine.models.in_memory import ModelInput
    from actstore.store.reader import Capture

__all__ = ["CaptureBuilder"]


@checks
class CaptureBuilder:
    """Arrays into a capture, through the plan, statistics, tables and checksums of one that a model was run for.

    Use it as a context manager, and `add` sequences; the capture is there, whole, when the context ends without an error, and
    nothing of it is before. Until then what was added lies beside the store, or where temporary files do: memory holds one
    block. Afterwards `capture` is the capture, for reading.

    - `store`: path or URL; a new store, or one that is there
    - `name`: of the new capture
    - `model`: what computed the arrays, by name, folder or in memory: a new store then has its weights and tokenizer. Without,
      a new store is of arrays alone, of a model called `model_name`: what needs weights or the model is refused there
    - `tokens_of`: a complete capture of the store with the same tokens; `add` then takes rows only, in the order of its
      `tokens()`. So features of an autoencoder on captured activations become a site beside them
    - `tokenizer`: whose ids the tokens have, where it is not the model's or the store's
    - `label_columns`: what `labels` of documents there are
    - `special_ids`: tokens that are stored and kept out of statistics, beside those that the tokenizer names
    - `corpus`: what the record calls the source
    - `replace`: whether a capture of this name that was made of arrays is replaced
    - `dtype`: of the values before they are encoded; float32, float16 or bfloat16 [that of the first array]
    - `non_finite`: "refuse", or "keep" where NaN means that there is no value
    - `precision`, `keep`, `exemplars`, `block_tokens`, `bundle`, `compression`, `order`: as of `actstore.capture`
    - `trust_remote_code`: whether code that comes with the model is run
    - `storage_options`: what opens a URL beyond what the environment says

    `InvalidInputError` for what does not fit, before anything is written.

    >>> with actstore.CaptureBuilder("mine.actstore", model="gpt2") as builder:
    ...     builder.add({("mlp.post", 3): array}, ids=ids)
    >>> with actstore.CaptureBuilder("gpt2.actstore", "features", tokens_of="corpus") as builder:
    ...     builder.add({("sae.features", 3): features})
    """

    _reached_as = "builder"

    def __init__(
        self,
        store: str | Path,
        name: str = "corpus",
        *,
        model: ModelInput | None = None,
        model_name: str = "arrays",
        tokens_of: str | None = None,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        label_columns: Sequence[str] | None = None,
        special_ids: Sequence[int] = (),
        corpus: str = "arrays",
        replace: bool = False,
        dtype: str | None = None,
        non_finite: NonFinite | None = None,
        precision: str | None = None,
        keep: float | None = None,
        exemplars: int | None = None,
        block_tokens: int | None = None,
        bundle: bool | None = None,
        compression: str | None = None,
        order: str | None = None,
        trust_remote_code: bool = False,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        given = locals()
        fields = BuildSettings.__dataclass_fields__
        settings = {field: given[field] for field in fields if given[field] is not None}
        self._settings = BuildSettings(**given_fields(BuildSettings, settings, "A builder"))
        check_options(name, RunOptions())
        self._folder = Folder(store, read_only=False, storage_options=storage_options)
        self._name, self._corpus = name, argument("corpus", corpus, str)
        self._replaces = argument("replace", replace, bool)
        root.check_target(self._folder, name, self._replaces)
        self._special_ids = argument("special_ids", special_ids, tuple[int, ...])
        self._find_model(model, argument("model_name", model_name, str), tokenizer, trusted=trust_remote_code)
        self._spool = Spool(self._folder.local_path())
        self._given = GivenSequences(self._spool, self._settings.label_columns, self._corpus)
        self._tokens: GivenSequences | SequencesOf = self._given
        self._widths: dict[Place, int] = {}
        self._dtype = self._settings.dtype
        self._n_unknown = 0
        self._vocabulary: Vocabulary | None = None
        self._is_open = True
        self._capture: Capture | None = None
        try:
            if tokens_of is not None:
                self._take_tokens(argument("tokens_of", tokens_of, str))
        except BaseException:
            self.close()
            raise

    def _find_model(self, model: ModelInput | None, name: str, tokenizer: Any, *, trusted: bool) -> None:
        """The model of the store, or that which a new one is to have."""
        self._new = root.load_root(model, name, tokenizer, trusted=trusted)
        loaded = self._new.model
        self._model = read_root(self._folder) if is_store(self._folder) else None
        if loaded is not None and self._model is None:
            self._model = model_record(loaded, fingerprint_of(loaded))
        elif loaded is not None:
            check_root(self._folder, fingerprint_of(loaded), loaded.spec.name)

    def _take_tokens(self, name: str) -> None:
        if not is_store(self._folder):
            raise InvalidInputError(
                f"`tokens_of` names a capture of the store, and {self._folder} is no store yet. Pass the tokens to `add`."
            )
        if self._settings.label_columns or self._new.tokenizer is not None:
            raise InvalidInputError(
                "With `tokens_of`, tokens and labels are those of that capture. Leave `label_columns` and `tokenizer` out."
            )
        if name == self._name:
            raise InvalidInputError(f"`tokens_of` names another capture than the new one, found {name!r} for both.")
        source = Store(self._folder).capture(name)
        self._n_unknown = int(source.record.settings.get("tokens") == known_as(1))
        self._tokens = SequencesOf(source)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._is_open:
                self.finish()
        finally:
            self.close()

    def __repr__(self) -> str:
        return f"CaptureBuilder({self._folder.location!r}, {self._name!r}: {self.n_rows} tokens)"

    @property
    def capture(self) -> Capture:
        """The finished capture, for reading."""
        if self._capture is None:
            raise InvalidInputError(
                f"Capture {self._name!r} is not finished. It is when the builder's context ends, or `finish` is called."
            )
        return self._capture

    n_rows = 0
    """Tokens added so far."""

    def add(
        self,
        activations: Mapping[Any, Any],
        *,
        ids: Any = None,
        texts: Sequence[str] | Sequence[Sequence[str]] | None = None,
        mask: Any = None,
        labels: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
        source: str | Sequence[str] | None = None,
    ) -> None:
        """Add one sequence, or several of one length.

        - `activations`: arrays [token, neuron], or [sequence, token, neuron], of NumPy, torch or JAX, in float32, float16,
          bfloat16 or float64; by (site, layer), by hook name of TransformerLens, or by site and then layer. A site is any of a
          model's, or one of your own such as `sae.features`. Every call has the same ones
        - `ids`: token ids, of the shape without the last axis. Without them and `texts`, tokens are not known: exemplars have
          places and no text, and what needs tokens is refused
        - `texts`: of each token, in place of ids, where the store has no other vocabulary
        - `mask`: False for padding before and behind, which is left out
        - `labels`: of each sequence, by label column; `source`: where it came from
        """
        self._check_open()
        arrays = places(activations)
        if any(isinstance(key, str) and parse_hook(key) is not None for key in activations):
            self.check_blocks()
        shape = self._leading_shape(arrays)
        own = {"ids": ids, "texts": texts, "mask": mask, "labels": labels, "source": source}
        sequences: Sequences | None = None
        if self._tokens is self._given:
            vocabulary = self._open_vocabulary() if texts is not None else None
            sequences = sequences_of(shape, own, vocabulary)
            n_new = sum(map(len, sequences.rows))
        else:
            if (said := [name for name, value in own.items() if value is not None]) != []:
                raise InvalidInputError(
                    f"With `tokens_of`, tokens are those of that capture, and `{said[0]}` is given. Leave it out."
                )
            n_new = shape[0] if len(shape) == 1 else shape[0] * shape[1]
            if self.n_rows + n_new > self._tokens.n_tokens:
                raise InvalidInputError(
                    f"The capture of `tokens_of` has {self._tokens.n_tokens:,} tokens, and these are rows for "
                    f"{self.n_rows + n_new:,}. Add one row per token, in the order of its `tokens()`."
                )
        if sequences is not None:
            self._given.check(sequences)
        ready = self._ready(arrays)
        try:
            self._append(ready, sequences)
        except BaseException:
            self.close()  # what was added may lack a part
            raise
        self.n_rows += n_new

    def check_blocks(self) -> None:
        """`InvalidInputError` where layers of the model, if it is known, are not its blocks, by which other tools number."""
        if self._model is not None:
            check_blocks(self._model.layers, self._model.name)

    def _append(self, arrays: Mapping[Place, Any], sequences: Sequences | None) -> None:
        for place, values in arrays.items():
            flat = values.reshape(-1, values.shape[-1])
            for part in [flat] if sequences is None else [flat[one] for one in sequences.rows]:
                self._spool.append(place, part)
        if sequences is not None:
            self._given.add(sequences)
            self._n_unknown += sum(int((one == UNKNOWN).sum()) for one in sequences.ids)

    def _check_open(self) -> None:
        if not self._is_open:
            raise InvalidInputError(f"The builder of capture {self._name!r} is closed. Make another for more arrays.")

    def _leading_shape(self, arrays: Mapping[Place, Rows]) -> tuple[int, ...]:
        """The shape of all arrays without their last axis, after checking that it is one and that they are those of before."""
        shapes = {place: rows.values.shape[:-1] for place, rows in arrays.items()}
        first, shape = next(iter(shapes.items()))
        for place, other in shapes.items():
            if other != shape:
                raise InvalidInputError(
                    f"All arrays of a call are of the same tokens: {first[0]} of layer {first[1]} has the shape {shape}, and "
                    f"{place[0]} of layer {place[1]} {other}, without the last axis."
                )
        widths = {place: rows.values.shape[-1] for place, rows in arrays.items()}
        if self._widths and widths != self._widths:
            other = sorted({*widths.items()} ^ {*self._widths.items()})[0]
            raise InvalidInputError(
                f"Every call adds the same sites, layers and widths: {other[0][0]} of layer {other[0][1]}, {other[1]} wide, is "
                "not in all of them. Make another capture of it, with `tokens_of`."
            )
        if not self._widths:
            order_of_sites(self._settings.order, dict.fromkeys(site for site, _ in widths))
            if self._model is not None:
                root.check_widths(self._model, widths, str(self._folder))
        return shape

    def _ready(self, arrays: Mapping[Place, Rows]) -> dict[Place, Any]:
        """The arrays in the builder's format, finite unless others are kept."""
        dtypes = {rows.dtype for rows in arrays.values()}
        dtype = self._dtype or (dtypes.pop() if len(dtypes) == 1 else "float32")
        ready = {}
        for place, rows in arrays.items():
            what = f"{place[0]} of layer {place[1]}"
            ready[place] = converted(rows, dtype, what)
            if self._settings.non_finite == "refuse":
                check_finite(ready[place], what)
        self._dtype = dtype
        self._widths = self._widths or {place: rows.values.shape[-1] for place, rows in arrays.items()}
        return ready

    def _open_vocabulary(self) -> Vocabulary:
        if self._new.tokenizer is not None:
            raise InvalidInputError("`texts` make a vocabulary, and there is a tokenizer. Pass `ids`.")
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(read_vocabulary(self._folder) if is_store(self._folder) else None)
        return self._vocabulary

    def finish(self) -> Capture:
        """Write the capture; the finished one, for reading. `InvalidInputError` where nothing was added, or rows lack."""
        self._check_open()
        if not self.n_rows:
            raise InvalidInputError(f"Nothing was added to capture {self._name!r}. Add arrays with a token at least.")
        if self.n_rows < self._tokens.n_tokens:
            raise InvalidInputError(
                f"The capture of `tokens_of` has {self._tokens.n_tokens:,} tokens, and {self.n_rows:,} rows were added. Add "
                "one row per token."
            )
        assert self._dtype is not None
        contents = filling.Contents(
            self._widths, self._dtype, self._tokens, self._spool, self._corpus, known_as(self._n_unknown)
        )
        with own(self._folder, self._name):
            root.check_target(self._folder, self._name, self._replaces)
            try:
                self._write(contents)
            except BaseException:
                with suppress(OSError):
                    self._folder.delete(capture_key(self._name))  # a capture is there whole, or not at all
                raise
        self.close()
        self._capture = Store(self._folder).capture(self._name)
        return self._capture

    def _write(self, contents: filling.Contents) -> None:
        folder, name = self._folder, self._name
        if self._replaces and is_store(folder):
            there = folder.names(capture_key(name))
            folder.clear(capture_key(name), [part for part in there if part != LOCK_NAME])
        vocabulary = self._vocabulary.table() if self._vocabulary is not None else None
        model = root.write_root(folder, self._new, contents.widths, contents.dtype, vocabulary)
        self._given.special_ids = root.special_ids(folder, self._new, self._special_ids)
        tokenizer = ""
        if folder.exists(VOCABULARY_KEY):
            tokenizer = (read_metadata(folder, VOCABULARY_KEY).get(b"fingerprint") or b"").decode()
        plan = filling.write_plan(folder, name, contents, self._settings, tokenizer)
        record = filling.capture_record(name, model.fingerprint, contents, self._settings, plan)
        filling.fill(folder, create_capture(folder, record), contents)

    def close(self) -> None:
        """Drop what was added and is not in the store."""
        if self._is_open:
            self._is_open = False
            self._spool.remove()
