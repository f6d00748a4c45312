"""`change patch`: how much of what sets one model apart from another comes with the neurons that changed most.

`find_changed` finds them for `change show` too. Knows nothing about how either is computed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.options import (
    CaptureName,
    Device,
    Dtype,
    Json,
    Positions,
    Quiet,
    TrustRemoteCode,
    load,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.change.activation_patching import PatchedScores, PatchingEvaluation, Scorer
    from actstore.engine.change.change import Change
    from actstore.engine.models.load import LoadedModel

OtherCapture = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which capture of OTHER. [default: as --capture]")
]
Share = Annotated[float, typer.Option(help="Neurons to select, as a share of all.")]


def register(group: typer.Typer) -> None:
    """Add the subcommand to `change`."""
    group.command()(patch)


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
    random: Annotated[int, typer.Option(help="Draws of as many random neurons of the same layers.")] = 3,
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
    from actstore.engine.change.activation_patching import Donor, PatchingSettings, evaluate_patching
    from actstore.engine.models.fingerprint import check_model, fingerprint_of

    settings = PatchingSettings(tokens, random, seed)
    texts = _read_prompts(prompts, max_prompts)
    found, chosen = find_changed(
        (store, other_store), (capture, other_capture or capture), "mlp.post", positions, share, quiet
    )
    terminal.warn(found.warnings)
    stores = Store(store), Store(other_store)
    loaded = []
    for name, held in zip((model, other), stores, strict=True):
        loaded.append(load(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code, quiet=quiet))
        check_model(held.folder, held.model.fingerprint, fingerprint_of(loaded[-1]), name)
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


def find_changed(
    stores: tuple[str, str],
    captures: tuple[str | None, str | None],
    site: str,
    positions: str,
    share: float,
    quiet: bool,
) -> tuple[Change, NDArray[Any]]:
    """The change scores of two stores, and the flat ids of the share that changed most."""
    from actstore.engine.change.change import change_scores, check_share

    check_share(share)
    first, second = (Store(store).capture(capture) for store, capture in zip(stores, captures, strict=True))
    with terminal.counting_bar("blocks", enabled=not quiet) as advance:
        found = change_scores(first, second, site=site, positions=positions, on_block=advance)
    return found, found.top(share)


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


def _encode(
    texts: Sequence[str], model: str, other: str, loaded: LoadedModel, trust_remote_code: bool
) -> tuple[list[list[int]], tuple[int, ...]]:
    """Token ids of every prompt, opened as the tokenizer opens texts, and the tokens that end a generation."""
    from actstore.engine.models.tokenizer.load import TextTokenizer

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
    from actstore.engine.change.activation_patching import REFUSALS, Contains, LogLikelihood

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
