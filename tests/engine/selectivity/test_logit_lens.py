"""The lens on the last layer is the model's own output; on the others, its head put there; each modality for itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, scatter_weights, tiny_config
from transformers import AutoModelForCausalLM

from actstore.engine.capture.api import capture
from actstore.engine.selectivity import logit_lens
from actstore.engine.selectivity.logit_lens import look_through
from actstore.store import layout
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.reader import Capture

TYPES = ("llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "granite", "cohere", "stablelm")


def make(folder: Path, model_type: str, **settings: Any) -> tuple[Capture, Any]:
    """A capture of the residual stream, and the model."""
    model = scatter_weights(AutoModelForCausalLM.from_config(tiny_config(model_type)))
    model.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    corpus = folder / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"input_ids": rng.integers(4, VOCABULARY - 4, n).tolist()}) + "\n" for n in (20, 31, 1, 8))
    )
    held = capture(str(folder / "model"), corpus, folder / "store", sites=("resid.post",), **settings)
    return held, AutoModelForCausalLM.from_pretrained(folder / "model").eval()


def entropy(logits: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Categorical(logits=logits.double()).entropy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", TYPES)
def test_the_last_layer_is_the_models_own_output(model_type: str, tmp_path: Path) -> None:
    held, model = make(tmp_path, model_type)
    found = look_through(held)
    is_text = (held.plan.array("tokens/modality") == layout.TEXT).tolist()
    windows, inputs = held.windows().to_pylist(), held.plan.array("inputs/ids").astype(np.int64)
    expected: list[float] = []
    for window in windows:
        ids = torch.from_numpy(inputs[window["input_start"] : window["input_start"] + window["n_inputs"]])[None]
        with torch.inference_mode():
            entropies = entropy(model(input_ids=ids).logits[0]).tolist()
        # Some tokenizers call ids special that are ordinary here.
        expected += [e for i, e in enumerate(entropies) if is_text[window["slot_start"] + i]]
    assert found.modalities == ("text",)
    assert found.n_tokens.tolist() == [len(expected)]
    assert len(expected) > 50
    # What a uniform distribution has more: some of these models are nearly undecided.
    below = np.log(VOCABULARY) - found.entropies[:, 0]
    assert below[-1] == pytest.approx(np.log(VOCABULARY) - np.mean(expected), rel=1e-3)
    assert not np.allclose(below[0], below[-1], rtol=0.01)


def test_modalities_are_looked_at_apart_and_at_most_so_many_tokens_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, model = make(tmp_path, "llama")
    plan = held.block_plan(0)
    plan.modality[:] = np.random.default_rng(1).choice([layout.TEXT, layout.IMAGE, layout.SPECIAL], len(plan.modality))
    monkeypatch.setattr(logit_lens, "_LOGITS_NBYTES", 4 * VOCABULARY * 7)
    seen: list[tuple[int, int]] = []
    found = look_through(held, max_tokens=9, on_tokens=lambda *progress: seen.append(progress))
    assert found.modalities == ("text", "image")
    assert found.n_tokens.tolist() == [9, 9]
    assert seen == [(18, 18)]
    for row, layer in enumerate(found.layers):
        stream = torch.from_numpy(held.block_values(layer, 0, "resid.post").T.copy())
        for column, kind in enumerate((layout.TEXT, layout.IMAGE)):
            chosen = np.flatnonzero(plan.modality == kind)[:9]
            with torch.inference_mode():
                expected = entropy(model.lm_head(model.model.norm(stream[chosen]))).mean()
            assert found.entropies[row, column] == pytest.approx(float(expected), rel=1e-5)


def test_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    held, _ = make(tmp_path, "llama", precision="none")
    with pytest.raises(
        InvalidInputError, match=r"sites resid\.post, precision none\)\. Capture with `sites=\(\"resid\.post\",\)`"
    ):
        look_through(held)
