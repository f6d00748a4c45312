"""What a capture keeps, as one record of named settings: defaults, what was requested, what a resumed run must repeat."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import numpy as np

from actstore.store.arguments import Typed, argument, given_fields
from actstore.store.capture.tokens.order import order_of_sites
from actstore.store.errors import InvalidInputError
from actstore.store.files.compression import check_compression
from actstore.store.files.precision import PRECISIONS
from actstore.store.files.record_checks import MAX_BLOCK_SLOTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actstore.engine.models.load import ModelSpec

MAX_DEFAULT_CONTEXT = 1024
UNBOUNDED_CONTEXT = 32_768
"""Of a model that states no bound, for prompts with images, which are not cut."""
MAX_ANSWERS = 10_000
DEFAULT_PROMPT = "Describe the image in few words."

OF_STORAGE = ("bundle", "compression", "order")
"""Settings that decide how a capture is stored, not what is in it: its record has them, and may be asked for nothing else."""

Options = TypeVar("Options")
Begin = Literal["auto", "always", "never"]
Part = Literal["language", "vision", "projector"]
Summed = Literal["next"]
"""To which token contributions are summed while a model runs: each position's next."""


def _as_indices(value: object) -> object:
    """Positions given as numbers, as the text that names them; anything else as it is."""
    numbers = [value] if isinstance(value, int | np.integer) and not isinstance(value, bool) else value
    if isinstance(numbers, list | tuple | range | np.ndarray) and len(numbers):
        return ",".join(map(str, argument("positions", numbers, tuple[int, ...])))
    return value


@dataclass(frozen=True)
class CaptureSettings(Typed):
    """Everything that decides what ends up in a capture; None means what the docstring of the field says."""

    sites: tuple[str, ...] = ("mlp.post",)
    part: Part = "language"
    """Of a model that reads images and text: the language model, the vision tower, or what lies between the two."""
    layers: tuple[int, ...] | None = None
    """All layers of the part."""
    precision: str = "exact"
    keep: float = 0.05
    """Share of each neuron's values that survives in a block, at precision `sparse`."""
    gate_sign: bool | None = None
    """One bit per value, sign of the gate: kept where the model is gated and `mlp.post` is captured."""
    exemplars: int = 20
    context: int | None = None
    """The model's context, at most 1,024 tokens."""
    overlap: int = 0
    begin: Begin = "auto"
    positions: Annotated[str, _as_indices] = "all"
    """`all`, `last`, or indices: "0,-1", -1 and [0, -1] are accepted."""
    batch_tokens: int = 4096
    block_tokens: int | None = None
    """Slots per block, the unit of work, rounded to whole windows; 16,384, or fewer where `memory` does not suffice."""
    bundle: bool | None = None
    """All files of a block in one object: where the capture would otherwise have more than 100,000. It is not written down with
    the others: what was decided is the record's `bundled`."""
    compression: str | None = None
    """Of values on disk: "huffman" at int8 and sparse, else "lz4:5". As `bundle`, it is the record's."""
    order: str | None = None
    """What lies together on disk: "neuron", "token", or "SITE=token" for one site, several divided by commas; where nothing is
    said, a token of sites of the residual stream, and else a neuron. As `bundle`, it is the record's."""
    contributions: Summed | None = None
    """`next`: what every neuron contributes to each position's next token is summed while the model runs, by labels of `by`."""
    by: str | None = None
    """One of the label columns; without, contributions are summed over all positions together."""
    max_tokens: int | None = None
    max_documents: int | None = None
    text_column: str = "text"
    ids_column: str = "input_ids"
    prefer_ids: bool = False
    label_columns: tuple[str, ...] = ()
    errors: Literal["strict", "replace"] = "strict"
    pattern: str = "*"
    stdin_format: Literal["text", "jsonl"] = "text"
    generate: bool = False
    """The model answers every prompt first; of images, the captions given are else taken for its answers."""
    answers: int = 1
    """To each prompt; more than one are sampled."""
    max_new_tokens: int = 50
    temperature: float | None = None
    """Answers are sampled at this temperature; None, with no `top_p`: the likeliest token each time."""
    top_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end an answer, which keeps the tokens that complete one."""
    chat: bool | None = None
    """Prompts go through the tokenizer's chat template: where it has one."""

    @property
    def is_sampled(self) -> bool:
        """Whether answers are drawn at random."""
        return self.temperature is not None or self.top_p is not None

    @classmethod
    def resolve(cls, requested: Mapping[str, object], spec: ModelSpec) -> Self:
        """The defaults overridden by `requested`, checked against the model; `InvalidInputError` for what it cannot give."""
        settings = cls(**given_fields(cls, requested, "A capture"))
        context = settings._default_context(spec) if settings.context is None else settings.context
        if context < 1:
            raise InvalidInputError(f"A window holds at least 1 token, found a context of {context}. Raise `context`.")
        if spec.context is not None and context > spec.context:
            raise InvalidInputError(
                f"{spec.name} reads at most {spec.context} tokens at once, found a context of {context}. Lower `context`."
            )
        settings = dataclasses.replace(settings, context=context)
        settings._check(spec)
        if "keep" in requested and not PRECISIONS[settings.precision].uses_keep:
            raise InvalidInputError(
                f"`keep` is the share of values kept at precision sparse, and the precision is {settings.precision}. Leave one "
                "out."
            )
        gated = any(spec.layers[layer].gated for layer in settings.chosen_layers(spec))
        if settings.gate_sign is None:
            keeps_values = PRECISIONS[settings.precision].keeps_values
            settings = dataclasses.replace(settings, gate_sign=gated and keeps_values and "mlp.post" in settings.sites)
        elif settings.gate_sign and not (gated and "mlp.post" in settings.sites):
            raise InvalidInputError(
                f"`gate_sign` needs the site mlp.post of a gated model; {spec.name} is "
                f"{'gated' if gated else 'not gated'}, and the sites are {', '.join(settings.sites)}."
            )
        return settings

    def _default_context(self, spec: ModelSpec) -> int:
        return min(spec.context or 512, MAX_DEFAULT_CONTEXT)

    def _check(self, spec: ModelSpec) -> None:
        if self.part not in get_args(Part):
            raise InvalidInputError(f"`part` is one of {', '.join(get_args(Part))}: found {self.part!r}.")
        if self.precision not in PRECISIONS:
            raise InvalidInputError(f"The precision is one of {', '.join(PRECISIONS)}: found {self.precision!r}.")
        if not 0 < self.keep <= 1:
            raise InvalidInputError(f"`keep` is a share above 0 and at most 1, found {self.keep}.")
        if not 0 <= self.exemplars <= 1000:
            raise InvalidInputError(f"`exemplars` lies between 0 and 1000, found {self.exemplars}.")
        if self.batch_tokens < 1:
            raise InvalidInputError(f"`batch_tokens` must be at least 1, found {self.batch_tokens}.")
        if self.block_tokens is not None and not 1 <= self.block_tokens <= MAX_BLOCK_SLOTS:
            raise InvalidInputError(
                f"`block_tokens` lies between 1 and {MAX_BLOCK_SLOTS:,}, found {self.block_tokens}."
            )
        if self.compression is not None:
            check_compression(self.compression)
        order_of_sites(self.order, self.sites)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidInputError(f"`max_tokens` must be at least 1, found {self.max_tokens}.")
        if self.begin not in get_args(Begin):
            raise InvalidInputError(f"`begin` is one of {', '.join(get_args(Begin))}: found {self.begin!r}.")
        for column in self.label_columns:
            if self.label_columns.count(column) > 1:
                raise InvalidInputError(f"The label column {column!r} is named twice. Name it once in `label_columns`.")
        self._check_contributions(spec)
        self._check_answers()
        for site in self.sites:
            if site not in spec.sites:
                raise InvalidInputError(f"{spec.name} has no site {site!r}. Its sites are {', '.join(spec.sites)}.")
        if not self.sites:
            raise InvalidInputError(
                f"At least one site must be captured. The model's sites are {', '.join(spec.sites)}."
            )
        if self.layers is not None and not self.layers:
            raise InvalidInputError(
                f"At least one layer must be captured. {spec.name} has layers 0 to {len(spec.layers) - 1}."
            )
        part_layers = spec.part_layers(self.part)
        if not part_layers:
            raise InvalidInputError(
                f"{spec.name} has no layers with neurons in its part {self.part!r}. Those that have some: "
                f"{', '.join(spec.parts)}. Check `part`."
            )
        for layer in self.layers or ():
            if not 0 <= layer < len(spec.layers):
                raise InvalidInputError(f"{spec.name} has layers 0 to {len(spec.layers) - 1}, found layer {layer}.")
            if layer not in part_layers:
                raise InvalidInputError(
                    f"Layer {layer} of {spec.name} belongs to its {spec.layers[layer].part} part, and a capture "
                    f"covers one part, here {self.part}: layers {part_layers[0]} to {part_layers[-1]}. "
                    "Check `part` or `layers`."
                )

    def _check_contributions(self, spec: ModelSpec) -> None:
        if self.contributions is None:
            if self.by is not None:
                raise InvalidInputError(
                    f"`by` says by which labels contributions are summed, found {self.by!r}. Ask for them, with "
                    '`contributions="next"`.'
                )
            return
        if self.contributions != "next":
            raise InvalidInputError(f"`contributions` is next, or left out: found {self.contributions!r}.")
        if self.by is not None and self.by not in self.label_columns:
            known = ", ".join(self.label_columns) or "none"
            raise InvalidInputError(
                f"`by` is one of the label columns, found {self.by!r}; they are: {known}. Name it in `label_columns` too."
            )
        if "mlp.post" not in self.sites or self.part != "language":
            raise InvalidInputError(
                "`contributions` are of the neurons at the site mlp.post of the language model. Add it to `sites`."
            )
        if spec.kind == "encoder":
            raise InvalidInputError(
                f"{spec.name} is an encoder, whose positions do not predict a next token. Leave `contributions` out."
            )
        if not spec.has_unembedding:
            raise InvalidInputError(
                f"Contributions are to logits, and {spec.name} has no unembedding. Leave `contributions` out."
            )

    def _check_answers(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidInputError(f"`max_new_tokens` is at least 1, found {self.max_new_tokens}.")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise InvalidInputError(
                f"`temperature` is above 0, found {self.temperature}. Leave it out for greedy answers."
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InvalidInputError(f"`top_p` lies above 0 and at most at 1, found {self.top_p}.")
        if self.is_sampled and not self.generate:
            raise InvalidInputError(
                "`temperature` and `top_p` say how answers are sampled. Ask for answers with `generate=True`."
            )
        if not 1 <= self.answers <= MAX_ANSWERS:
            raise InvalidInputError(f"`answers` lies between 1 and {MAX_ANSWERS:,}, found {self.answers}.")
        if self.answers > 1 and not self.is_sampled:
            raise InvalidInputError(
                f"{self.answers} greedy answers to one prompt would be the same. Sample them, with `temperature` or `top_p`."
            )
        if not all(self.stop):
            raise InvalidInputError(
                "A text of `stop` that ends an answer has at least one character, found an empty one."
            )
        if not self.generate:
            for name, value in (("answers", self.answers > 1), ("stop", self.stop), ("chat", self.chat is not None)):
                if value:
                    raise InvalidInputError(f"`{name}` is of generated answers. Ask for them with `generate=True`.")

    def chosen_layers(self, spec: ModelSpec) -> tuple[int, ...]:
        """The layers that are captured, ascending."""
        return tuple(sorted(set(self.layers))) if self.layers is not None else spec.part_layers(self.part)

    def widths(self, spec: ModelSpec) -> dict[str, dict[int, int]]:
        """Site → layer → width of everything captured; a site that no chosen layer has is refused."""
        layers_captured = set(self.chosen_layers(spec))
        widths = {
            site: {layer: spec.width(layer, site) for layer in spec.layers_of(site) if layer in layers_captured}
            for site in self.sites
        }
        for site, layers in widths.items():
            if not layers:
                raise InvalidInputError(
                    f"None of the layers {sorted(layers_captured)} of {spec.name} has the site {site!r}."
                )
        return widths

    def of(self, kind: type[Options]) -> Options:
        """The options of one step: every field of the dataclass `kind`, from the setting of the same name."""
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON-ready values, without those that decide nothing of what is in a capture."""
        values = dataclasses.asdict(self)
        for name in OF_STORAGE:
            del values[name]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        known = {field.name for field in dataclasses.fields(cls)}
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k in known}
        return cls(**fields)

    def differences(self, requested: Mapping[str, object]) -> list[str]:
        """A phrase for each requested setting that is not what it is here."""
        return [
            f"{name} is {_show(getattr(self, name))} there and {_show(value)} now"
            for name, value in requested.items()
            if getattr(self, name) != value
        ]


@dataclass(frozen=True)
class ImageSettings(CaptureSettings):
    """Everything that decides what ends up in a capture of images. What concerns documents of text only is not used."""

    prompt: str = DEFAULT_PROMPT
    """The prompt of an image whose record has none."""
    prefix: str = ""
    """The forced beginning of every answer; it counts as part of the prompt."""
    image_column: str = "image"
    prompt_column: str = "prompt"
    caption_column: str = "caption"

    TEXT_ONLY: ClassVar = (
        "contributions", "by", "overlap", "begin", "text_column", "ids_column", "prefer_ids", "errors", "stdin_format",
        "answers", "stop", "chat",
    )  # fmt: skip
    """Fields that mean nothing for images, or that images do not have."""

    def _default_context(self, spec: ModelSpec) -> int:
        return spec.context or UNBOUNDED_CONTEXT

    def _check(self, spec: ModelSpec) -> None:
        super()._check(spec)
        if self.part == "language":
            return
        if self.generate:
            raise InvalidInputError(
                f"Answers change nothing in the {self.part} part, which they follow. Leave `generate` out."
            )
        if self.positions != "all":
            raise InvalidInputError(
                f"Of the {self.part} part all positions are kept, found {self.positions!r}. Leave `positions` out."
            )


def _show(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
