"""`actstore change`: the neurons that act most differently in two models, and how much of the difference comes with them.

Knows nothing about how either is computed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore import terminal
from actstore.commands.options import (
    CaptureName,
    Device,
    Dtype,
    GroupWithDefault,
    Json,
    Quiet,
    Site,
    StorePath,
    TrustRemoteCode,
    as_rows,
)
from actstore.reports import print_json
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.attribution.activation_patching import PatchedScores, PatchingEvaluation, Scorer
    from actstore.engine.attribution.change import Change
    from actstore.engine.models import LoadedModel

OtherStore = Annotated[
    str,
    typer.Argument(metavar="OTHER", help="A store of another model over the same corpus, such as a fine-tuned copy."),
]
OtherCapture = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which capture of OTHER. [default: as --capture]")
]
Positions = Annotated[
    str,
    typer.Option(
        metavar="POSITIONS",
        help="counted (all but special tokens), all, text, image, last, generated, or predicting: those that predict "
        "generated tokens.",
    ),
]
Share = Annotated[float, typer.Option(help="The neurons that changed most, as a share of all.")]

app = typer.Typer(
    cls=GroupWithDefault,
    help="Neurons that act differently in two models on the same tokens (change scores, safety neurons). "
    "`actstore change STORE OTHER` is short for `actstore change show STORE OTHER`.\n\n"
    "Example: `actstore change base.actstore tuned.actstore`",
    no_args_is_help=True,
)


def register(main: typer.Typer) -> None:
    """Add `change` to the program."""
    main.add_typer(app, name="change")


@app.command()
def show(
    store: StorePath,
    other: OtherStore,
    capture: CaptureName = None,
    other_capture: OtherCapture = None,
    site: Site = "mlp.post",
    positions: Positions = "counted",
    share: Share = 0.05,
    k: Annotated[
        int | None,
        typer.Option("--k", "-k", min=1, help="Name at most so many. [default: 20; with --json all of --share]"),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The neurons whose activations differ most between two models: root mean square difference, over every layer.

    Both stores must hold captures of the same corpus with the same settings.

    Example: `actstore change base.actstore tuned.actstore --share 0.05`
    """
    found, chosen = _find((store, other), (capture, other_capture or capture), site, positions, share, quiet)
    terminal.warn(found.warnings)
    layers = {int(layer): len(neurons) for layer, neurons in found.by_layer(chosen).items()}
    if as_json:
        listed = chosen[:k] if k is not None else chosen
        print_json(
            {
                "site": site,
                "positions": positions,
                "tokens": found.n_positions,
                "share": share,
                "selected": len(chosen),
                "neurons": as_rows(found.scores[listed], found.names(listed)),
                "layers": [
                    {"layer": layer, "neurons": width, "selected": layers.get(layer, 0), "mean": mean}
                    for layer, width, mean in _layers(found)
                ],
                "warnings": list(found.warnings),
            }
        )
        return
    terminal.out.print(
        f"{len(chosen):,} of {len(found.scores):,} neurons ({100 * share:g} %) changed most, over {found.n_positions:,} "
        "tokens.",
        style="bold",
        soft_wrap=True,
    )
    listed = chosen[: k or 20]
    rows = [(row["neuron"], row["score"]) for row in as_rows(found.scores[listed], found.names(listed))]
    terminal.out.print(terminal.table(None, ["neuron", ("change", "right")], rows))
    terminal.out.print()
    columns = ["layer", ("neurons", "right"), ("selected", "right"), ("mean change", "right")]
    shown = [(f"L{layer}", width, layers.get(layer, 0), mean) for layer, width, mean in _layers(found)]
    terminal.out.print(terminal.table(None, columns, shown))


@app.command()
def patch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Whose neurons are patched: a Hub id or a folder.")],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The model whose activations are put in their place.")],
    prompts: Annotated[
        str, typer.Argument(metavar="PROMPTS", help="A prompt a line; or JSON lines with `prompt` or `text`.")
    ],
    store: Annotated[str, typer.Option(metavar="STORE", help="The store of MODEL, from which neurons are chosen.")],
    other_store: Annotated[str, typer.Option("--other", metavar="STORE", help="The store of OTHER.")],
    capture: CaptureName = None,
    other_capture: OtherCapture = None,
    positions: Positions = "counted",
    share: Share = 0.05,
    scorer: Annotated[
        str,
        typer.Option(
            help="refusal, regex:PATTERN (does the generation match), or likelihood (mean log p under OTHER)."
        ),
    ] = "refusal",
    tokens: Annotated[
        int, typer.Option("--tokens", "--max-new-tokens", help="Tokens of a generated answer, at most.")
    ] = 32,
    random: Annotated[int, typer.Option(help="Sets of as many random neurons of the same layers.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the random neurons.")] = 0,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="Read at most so many prompts.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """How much of what sets OTHER apart does MODEL do once the changed neurons are as in OTHER? Dynamic activation patching.

    Both models are in memory at once.

    Example: `actstore change patch base tuned prompts.txt --store base.actstore --other
    tuned.actstore --scorer 'regex:(?i)sorry'`
    """
    from actstore.engine.attribution.activation_patching import Donor, PatchingSettings, evaluate_patching

    settings = PatchingSettings(tokens, random, seed)
    texts = _read_prompts(prompts, max_prompts)
    found, chosen = _find(
        (store, other_store), (capture, other_capture or capture), "mlp.post", positions, share, quiet
    )
    terminal.warn(found.warnings)
    stores = Store(store), Store(other_store)
    with terminal.spinner("loading both models", enabled=not quiet):
        loaded = [_load(n, s, dtype, device, trust_remote_code) for n, s in zip((model, other), stores, strict=True)]
    ids, stop = _encode(texts, model, other, loaded[0], trust_remote_code)
    settings = PatchingSettings(tokens, random, seed, stop)
    judge = _scorer(scorer, loaded[1], stores[0])
    donor = Donor(loaded[1], found.by_layer(chosen))
    with terminal.counting_bar("prompts", enabled=not quiet) as advance:
        result = evaluate_patching(loaded[0], donor, ids, judge, settings, on_prompt=advance)
    value = _describe(result, chosen, scorer, texts, stores[0])
    if as_json:
        print_json(value)
    else:
        _print(value, result)


def _find(
    stores: tuple[str, str],
    captures: tuple[str | None, str | None],
    site: str,
    positions: str,
    share: float,
    quiet: bool,
) -> tuple[Change, NDArray[Any]]:
    """The change scores of two stores, and the flat ids of the share that changed most."""
    from actstore.engine.attribution.change import change_scores, check_share

    check_share(share)
    first, second = (Store(store).capture(capture) for store, capture in zip(stores, captures, strict=True))
    with terminal.counting_bar("blocks", enabled=not quiet) as advance:
        found = change_scores(first, second, site=site, positions=positions, on_block=advance)
    return found, found.top(share)


def _layers(found: Change) -> list[tuple[int, int, float]]:
    """(layer, neurons, mean score of those that have one)."""
    rows = []
    for layer, scores in found.sums.scores().items():
        known = scores[scores == scores]
        rows.append((layer, len(scores), float(known.mean()) if len(known) else math.nan))
    return rows


def _read_prompts(path: str, at_most: int | None) -> list[str]:
    """The prompts of a file; `InvalidInputError` naming the line that is none."""
    file = Path(path)
    if not file.is_file():
        raise InvalidInputError(f"There is no file {path}: expected one with a prompt a line, or JSON lines.")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} should be UTF-8 text: {error}.") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if file.suffix in (".jsonl", ".ndjson"):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InvalidInputError(f"{path}:{number} should be a JSON object: {error}.") from None
            text = (row.get("prompt", row.get("text"))) if isinstance(row, dict) else None
            if not isinstance(text, str) or not text:
                raise InvalidInputError(f"{path}:{number} should be an object with a text `prompt` or `text`.")
        else:
            text = line
        found.append(text)
        if len(found) == at_most:
            break
    if not found:
        raise InvalidInputError(f"{path} holds no prompt: expected one a line.")
    return found


def _load(name: str, store: Store, dtype: str, device: str, trust_remote_code: bool) -> LoadedModel:
    """A model, which must be the one that the store holds."""
    from actstore.engine.identity import check_model, fingerprint_of
    from actstore.engine.models import load_model

    loaded = load_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    check_model(store.folder, store.model.fingerprint, fingerprint_of(loaded), name)
    return loaded


def _encode(
    texts: Sequence[str], model: str, other: str, loaded: LoadedModel, trust_remote_code: bool
) -> tuple[list[list[int]], tuple[int, ...]]:
    """Token ids of every prompt, opened as the tokenizer opens texts, and the tokens that end a generation."""
    from actstore.engine.tokens import TextTokenizer

    tokenizer, others = (TextTokenizer.load(name, trust_remote_code=trust_remote_code) for name in (model, other))
    if tokenizer.fingerprint != others.fingerprint:
        raise InvalidInputError(
            f"{model} and {other} have different tokenizers: token ids would not mean the same. Choose a model and its "
            "fine-tuned copy."
        )
    config = getattr(loaded.model, "generation_config", None) or loaded.model.config
    end = getattr(config, "eos_token_id", None)
    stop = tuple(end) if isinstance(end, list) else () if end is None else (int(end),)
    return [[*tokenizer.prefix, *ids.tolist()] for ids in tokenizer.encode(list(texts))], stop


def _scorer(name: str, other: LoadedModel, store: Store) -> Scorer:
    from actstore.engine.attribution.activation_patching import REFUSALS, Contains, LogLikelihood

    if name == "likelihood":
        return LogLikelihood(other)
    if name == "refusal":
        return Contains(REFUSALS, store.text)
    if name.startswith("regex:"):
        return Contains(name.removeprefix("regex:"), store.text)
    raise InvalidInputError(f"The scorer is refusal, likelihood or regex:PATTERN, found {name!r}.")


def _describe(
    result: PatchingEvaluation, chosen: NDArray[Any], scorer: str, texts: Sequence[str], store: Store
) -> dict[str, Any]:
    def row(scores: PatchedScores) -> dict[str, Any]:
        return {"score": float(scores.scores.mean()), "effect": scores.effect, "neurons": scores.n_neurons}

    return {
        "scorer": scorer,
        "prompts": len(texts),
        "neurons": len(chosen),
        "model": float(result.first.mean()),
        "other": float(result.second.mean()),
        "patched": row(result.patched),
        "random": [row(scores) for scores in result.random],
        "generations": [
            {"prompt": text, "model": store.text(a), "other": store.text(b), "patched": store.text(c)}
            for text, (a, b, c) in zip(texts, result.generated, strict=True)
        ],
    }


def _print(value: dict[str, Any], result: PatchingEvaluation) -> None:
    rows: list[tuple[Any, ...]] = [
        ("MODEL", None, value["model"], None),
        ("OTHER", None, value["other"], None),
        (
            "MODEL, changed neurons patched",
            value["patched"]["neurons"],
            value["patched"]["score"],
            result.patched.effect,
        ),
    ]
    rows += [
        ("MODEL, random neurons patched", row["neurons"], row["score"], float(row["effect"])) for row in value["random"]
    ]
    columns = ["generating", ("neurons", "right"), (f"mean {value['scorer']}", "right"), ("causal effect", "right")]
    terminal.out.print(terminal.table(terminal.plural(value["prompts"], "prompt"), columns, rows))
    if value["model"] == value["other"]:
        terminal.out.print("Both models score alike: there is no difference to explain.")
