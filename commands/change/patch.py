"""`change patch`: how much of the difference between two models comes with the neurons that changed most.

`find_changed` selects them for `change show` too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands import completion
from actstore.commands.choices import ScorerName  # noqa: TC001  (Typer reads it)
from actstore.commands.options import (
    CaptureName,
    Device,
    Dtype,
    Json,
    MaxNewTokens,
    ModelOption,
    Positions,
    Quiet,
    Seed,
    StorePath,
    TrustRemoteCode,
    captured_model,
    load,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.change.activation_patching import PatchedScores, PatchingEvaluation
    from actstore.engine.change.change import Change
    from actstore.store.model.root import Root

OtherStore = Annotated[
    str,
    typer.Argument(metavar="OTHER", help="A store of another model over the same corpus, such as a fine-tuned copy."),
]
OtherCapture = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Name of the capture in OTHER. [default: as --capture]",
        autocompletion=completion.other_captures,
    ),
]
Share = Annotated[float, typer.Option(help="Number of neurons to select, as a share of all.")]


def register(group: typer.Typer) -> None:
    """Add the subcommand to `change`."""
    group.command()(patch)


def patch(
    store: StorePath,
    other: OtherStore,
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS", help="A file with one prompt per line; or JSON lines with `prompt` or `text`."
        ),
    ],
    model: ModelOption = None,
    other_model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model of OTHER. [default: the model that was captured there]"),
    ] = None,
    capture: CaptureName = None,
    other_capture: OtherCapture = None,
    positions: Positions = "counted",
    share: Share = 0.05,
    scorer: Annotated[
        ScorerName,
        typer.Option(
            help="Score of a generated answer: whether it refuses, whether it matches --pattern, its mean log probability "
            "under the model of OTHER, or what --function gives."
        ),
    ] = "refusal",
    pattern: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="The regular expression.", rich_help_panel="Scorer regex"),
    ] = None,
    function: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="A Python function that gives a number for the texts of prompt and answer; also FILE.py:NAME.",
            rich_help_panel="Scorer function",
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(help="Put prompts into the tokenizer's chat template. [default: where it has one]"),
    ] = None,
    max_new_tokens: MaxNewTokens = 32,
    random: Annotated[int, typer.Option(help="Number of draws of random neurons, as many in the same layers.")] = 3,
    seed: Seed = 0,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="Maximum number of prompts to read.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Replace the changed neurons' activations by those of the other model while the first generates, and score the answers.

    Dynamic activation patching: the effect is the share of the difference between both models that the neurons bring
    about. Both models are in memory at once.

    Example: `actstore change patch base.actstore tuned.actstore prompts.txt --scorer regex --pattern '(?i)sorry'`
    """
    from actstore.engine.change.activation_patching import Donor, PatchingSettings, evaluate_patching
    from actstore.engine.change.prompts import encode_prompts, make_scorer
    from actstore.engine.models.fingerprint import check_model, fingerprint_of

    settings = PatchingSettings(max_new_tokens, random, seed)
    _check_scorer(scorer, pattern, function)
    texts = _read_prompts(prompts, max_prompts)
    change, selection = find_changed(
        (store, other), (capture, other_capture or capture), "mlp.post", positions, share, quiet
    )
    terminal.warn(change.warnings)
    change.check_difference()
    captures = Store(store).capture(capture), Store(other).capture(other_capture or capture)
    sources = [captured_model(one.store, name) for one, name in zip(captures, (model, other_model), strict=True)]
    loaded = []
    for source, one in zip(sources, captures, strict=True):
        loaded.append(load(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code, quiet=quiet))
        check_model(one.store.folder, one.store.model.fingerprint, fingerprint_of(loaded[-1]), source)
    ids, stop = encode_prompts(texts, sources[0], sources[1], loaded[0], trust_remote_code=trust_remote_code, chat=chat)
    settings = PatchingSettings(max_new_tokens, random, seed, stop)
    score = make_scorer(scorer, pattern, function, loaded[1], captures[0].store)
    donor = Donor(loaded[1], change.by_layer(selection))
    with terminal.counting_bar("prompts", enabled=not quiet) as advance:
        result = evaluate_patching(loaded[0], donor, ids, score, settings, on_prompt=advance)
    argument = pattern if pattern is not None else function
    name = scorer if argument is None else f"{scorer}:{argument}"
    value = _describe(result, selection, name, texts, captures[0].store)
    if as_json:
        print_json(value)
    else:
        _print(value, result)


def _check_scorer(scorer: str, pattern: str | None, function: str | None) -> None:
    """Refuse a pattern or a function without the scorer that needs it, and that scorer without one."""
    if scorer == "regex" and pattern is None:
        raise InvalidInputError("--scorer regex needs a regular expression. Name it with --pattern.")
    if scorer != "regex" and pattern is not None:
        raise InvalidInputError(
            f"--pattern is an option of --scorer regex, and --scorer is {scorer}. Leave one of them out."
        )
    if scorer == "function" and function is None:
        raise InvalidInputError("--scorer function needs a function, as module:name. Name it with --function.")
    if function is None:
        return
    if scorer != "function":
        raise InvalidInputError(
            f"--function is an option of --scorer function, and --scorer is {scorer}. Leave one of them out."
        )
    from actstore.engine.change.own_scorer import load_function

    load_function(function)  # refused before a model is loaded


def find_changed(
    stores: tuple[str, str],
    captures: tuple[str | None, str | None],
    site: str,
    positions: str,
    share: float,
    quiet: bool,
    workers: int | None = None,
    on: str = "local",
) -> tuple[Change, NDArray[Any]]:
    """The change scores of two stores, and the flat ids of the share that changed most."""
    from actstore.engine.change.change import change_scores, check_share
    from actstore.engine.workers.scan import executor_of

    check_share(share)
    executor = executor_of(workers, on)
    first, second = (Store(store).capture(capture) for store, capture in zip(stores, captures, strict=True))
    with terminal.counting_bar("blocks", enabled=not quiet) as advance:
        change = change_scores(first, second, site=site, positions=positions, on_block=advance, executor=executor)
    return change, change.top(share)


def _read_prompts(path: str, max_prompts: int | None) -> list[str]:
    """The prompts of a file; `InvalidInputError` names a line that is none."""
    file = Path(path)
    if not file.is_file():
        raise InvalidInputError(f"There is no file {path}: expected one with one prompt per line, or JSON lines.")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} should be UTF-8 text: {error}.") from None
    prompts = []
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
        prompts.append(text)
        if len(prompts) == max_prompts:
            break
    if not prompts:
        raise InvalidInputError(f"{path} holds no prompt: expected one per line.")
    return prompts


def _describe(
    result: PatchingEvaluation, selection: NDArray[Any], scorer: str, texts: Sequence[str], store: Root
) -> dict[str, Any]:
    def row(scores: PatchedScores) -> dict[str, Any]:
        return {"score": float(scores.scores.mean()), "effect": scores.effect, "neurons": scores.n_neurons}

    return {
        "scorer": scorer,
        "prompts": len(texts),
        "neurons": len(selection),
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
        terminal.out.print("Both models have the same score: there is no difference to explain.")
