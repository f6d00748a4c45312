"""Sweeps over all model types: builds a tiny random one of each and proves its sites; a script that prints or writes the table.

    python tests/support/sweep.py --write

Not a test module.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from actstore.engine.models.load import LoadedModel
from actstore.engine.models.names import HEAD_SITES, SITES
from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parents[2]))
from proofs import (
    check_effect,
    check_experts,
    check_factors,
    check_heads,
    check_projections,
    check_stream,
    inputs_for,
    read_all,
    recorded,
)
from tiny import scatter_weights, tiny_config

from benchmarks.marked import rewrite

CAUSAL = tuple(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
OTHERS: dict[str, str] = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "albert": "AlbertForMaskedLM",
    "electra": "ElectraForMaskedLM",
    "modernbert": "ModernBertForMaskedLM",
    "deberta": "DebertaForMaskedLM",
    "deberta-v2": "DebertaV2ForMaskedLM",
    "esm": "EsmForMaskedLM",
    "vit": "ViTForImageClassification",
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "dinov2": "Dinov2Model",
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "whisper": "WhisperForConditionalGeneration",
    "switch_transformers": "SwitchTransformersForConditionalGeneration",
    "nllb-moe": "NllbMoeForConditionalGeneration",
}
"""Types beside the causal ones: model type to class."""


@dataclass
class Outcome:
    """What became of one type."""

    name: str
    result: str  # "pass", "refused", "not built" or "failed"
    reason: str = ""
    kind: str = ""
    feed_forward: str = ""
    form: str = ""
    sites: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)


def build(model_type: str, class_name: str | None = None) -> PreTrainedModel:
    """A tiny random model of a type: of its causal class, or of the class named. Raises `NotBuiltError`."""
    try:
        return _build(model_type, class_name)
    except Exception as error:
        raise NotBuiltError(" ".join(str(error).split())[:200]) from error


def _build(model_type: str, class_name: str | None) -> PreTrainedModel:
    config = tiny_config(model_type)
    kind = getattr(transformers, class_name or auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    if isinstance(kind.config_class, type) and not isinstance(config, kind.config_class):
        config = next((value for value in vars(config).values() if isinstance(value, kind.config_class)), config)
    return scatter_weights(kind._from_config(config, dtype=torch.float32))


class NotBuiltError(Exception):
    """No tiny model of a type could be made: its configuration needs more care than shrinking, or a library is missing."""


def prove(model_type: str, class_name: str | None = None) -> Outcome:
    """Builds a type, reads all its sites, and asserts that they are what they are said to be.

    Raises `AssertionError` where they are not; an `Outcome` "refused" says why a type has nothing to prove.
    """
    name = model_type
    model = build(model_type, class_name)
    try:
        loaded = LoadedModel(model, name=name)
    except ModelError as error:
        return Outcome(name, "refused", " ".join(str(error).split()))
    ids, extra = inputs_for(loaded)
    found = read_all(loaded, ids, extra)
    with recorded(loaded, ids, extra) as calls:
        notes = {
            "projections": check_projections(loaded, found, calls),
            "experts": check_experts(loaded, found, calls),
            "factors": check_factors(loaded, found),
            "stream": check_stream(loaded, found),
        }
    notes["heads"] = check_heads(loaded, ids, extra)
    check_effect(loaded, ids, extra)
    spec = loaded.spec
    gated = {layer.gated for layer in spec.layers}
    experts = {"experts" if layer.expert is not None else "dense" for layer in spec.layers}
    form = "3-D parameter" if any("[" in layer.module for layer in spec.layers) else "modules"
    return Outcome(
        name,
        "pass",
        kind=spec.kind,
        feed_forward="/".join(sorted("gated" if flag else "plain" for flag in gated)),
        form=" + ".join(sorted(experts)) + (f" ({form})" if "experts" in experts else ""),
        sites=spec.sites,
        notes=notes,
    )


def _explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def sweep() -> Iterator[Outcome]:
    """The outcome of every type."""
    for name, class_name in [*((name, None) for name in CAUSAL), *OTHERS.items()]:
        try:
            outcome = prove(name, class_name)
        except NotBuiltError as error:
            outcome = Outcome(name, "not built", str(error))
        except Exception as error:
            outcome = Outcome(name, "failed", _explain(error))
        outcome.name = name if class_name is None else f"{name} ({class_name})"
        yield outcome


TOLD_BY_ANOTHER = ("mlp.up", "resid.post")  # missing where mlp.gate, or resid.pre, is


def as_markdown(outcomes: list[Outcome]) -> str:
    """The table of docs/architecture.md: types that behave alike share a row."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for outcome in outcomes:
        missing = [site for site in SITES if site not in {*TOLD_BY_ANOTHER, *HEAD_SITES, *outcome.sites}]
        sites = "all" if not missing else "all but " + ", ".join(missing)
        row = (outcome.kind, outcome.feed_forward, outcome.form, sites, "pass")
        if outcome.result != "pass":
            # A cell holds the fact, not the advice that follows it.
            fact = re.sub(r" \(\w+For\w+\)", "", outcome.reason).split("; ")[0].split(". ")[0]
            row = ("", "", "", "", f"{outcome.result}: {fact}")
        groups[row].append(outcome.name)
    lines = ["| model types | reads | FFN | layers | sites | result |", "|---|---|---|---|---|---|"]
    for row, names in sorted(groups.items(), key=lambda item: (item[0][-1] != "pass", -len(item[1]))):
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table of docs/architecture.md")
    options = parser.parse_args()
    torch.set_num_threads(1)  # tiny products: threads only wait for each other
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    outcomes = []
    for outcome in sweep():
        outcomes.append(outcome)
        if not options.write:
            print(
                outcome.result,
                outcome.name,
                outcome.reason[:200],
                outcome.feed_forward,
                outcome.form,
                outcome.sites,
                outcome.notes,
                flush=True,
            )
    if options.write:
        print(rewrite("architectures", as_markdown(outcomes)))
    else:
        print(
            {result: sum(o.result == result for o in outcomes) for result in ("pass", "refused", "not built", "failed")}
        )


if __name__ == "__main__":
    main()
