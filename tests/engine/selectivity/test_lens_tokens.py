"""Lens tables against the textbook's lens: the model's own norm and head put on its hidden states."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, random_ids, scatter_weights, tiny_config
from transformers import AutoModelForCausalLM

import actstore
from actstore.engine.selectivity import logit_lens
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel


IDS = random_ids(3, 10, seed=5)


@pytest.fixture(
    scope="module", params=[("llama", True), ("llama", False), ("gpt2", True), ("gpt_neox", False)], ids=str
)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, actstore.Store]:
    """A tiny model with a norm of either kind, and a capture of its stream over three documents of ten ids.

    Gated without biases and plain with biases, tied and untied.
    """
    model_type, tied = request.param
    folder = tmp_path_factory.mktemp(model_type)
    config = tiny_config(model_type)
    config.tie_word_embeddings = tied
    model = scatter_weights(AutoModelForCausalLM.from_config(config))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in IDS.tolist()))
    actstore.capture(model, corpus, folder / "store", sites=("resid.post",), block_tokens=64)
    return model, actstore.open(folder / "store")


def textbook(model: PreTrainedModel, document: int, position: int, layer: int) -> torch.Tensor:
    """The probabilities of the next token as a layer's stream has them."""
    base = model.base_model
    blocks = base.layers if hasattr(base, "layers") else base.h
    norm = next(getattr(base, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(base, name))
    seen: list[torch.Tensor] = []
    handle = blocks[layer].register_forward_hook(
        lambda _module, _args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.inference_mode():
        model(IDS[document : document + 1])
        handle.remove()
        return model.get_output_embeddings()(norm(seen[0]))[0, position].double().softmax(-1)


@pytest.mark.parametrize("place", [(0, 0), (2, 4)])
def test_at_a_place(made: tuple[PreTrainedModel, actstore.Store], place: tuple[int, int]) -> None:
    model, held = made
    document, position = place
    answer = held.selectivity.lens_tokens(at=f"{document}:{position}", k=4)
    table = answer.table.to_arrow().to_pylist()
    assert [(row["layer"], row["rank"]) for row in table] == [(layer, rank) for layer in (0, 1) for rank in range(1, 5)]
    following = int(IDS[document, position + 1])
    for layer in (0, 1):
        expected = textbook(model, document, position, layer)
        rows = table[4 * layer : 4 * layer + 4]
        best = expected.sort(descending=True, stable=True)
        assert [row["token"] for row in rows] == best.indices[:4].tolist()
        np.testing.assert_allclose([row["probability"] for row in rows], best.values[:4], rtol=1e-4)
        for row in rows:
            assert (row["document"], row["position"], row["read"]) == (document, position, int(IDS[document, position]))
            assert (row["next"], row["text"]) == (following, held.token_text(row["token"]))
            assert row["next_probability"] == pytest.approx(float(expected[following]), rel=1e-4)
            assert row["entropy"] == pytest.approx(float(torch.distributions.Categorical(expected).entropy()), rel=1e-4)


def test_along_a_document_it_is_that_of_each_place(
    made: tuple[PreTrainedModel, actstore.Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, held = made
    monkeypatch.setattr(logit_lens, "_LOGITS_NBYTES", 4 * VOCABULARY * 3)  # a few rows at a time
    whole = held.selectivity.lens_tokens(document=1, k=3).table.to_arrow()
    assert whole["position"].to_pylist() == [position for position in range(10) for _ in range(6)]
    for position in (0, 7):
        alone = held.selectivity.lens_tokens(at=(1, position), k=3).table.to_arrow()
        of_place = whole.slice(6 * position, 6).to_pydict()
        for name, values in alone.to_pydict().items():
            np.testing.assert_allclose(of_place[name], values, rtol=1e-5) if name != "text" else None
    last = whole.slice(54).to_pylist()
    assert {(row["next"], row["next_probability"]) for row in last} == {(None, None)}


def test_the_command_shows_both(made: tuple[PreTrainedModel, actstore.Store], cli: Callable[..., Any]) -> None:
    _, held = made
    at = cli("selectivity", "lens-tokens", held.folder.location, "--at", "0:3", "-k", 2)
    assert [line.split()[0] for line in at.out.splitlines()[2:]] == ["L0", "L1"]
    along = cli("selectivity", "lens-tokens", held.folder.location, "--document", 1, "--rows", 4)
    assert "… and 6 more positions: --rows 0 shows all." in along.out
    described = cli("selectivity", "lens-tokens", held.folder.location, "--at", "0:3", "-k", 2, "--json").json
    expected = held.selectivity.lens_tokens(at="0:3", k=2).table.to_arrow().to_pylist()
    assert described == {"capture": "corpus", "rows": expected}


def test_what_cannot_be_shown_is_refused(made: tuple[PreTrainedModel, actstore.Store]) -> None:
    lens = made[1].selectivity.lens_tokens
    for query in ({}, {"at": "0:1", "document": 0}):
        with pytest.raises(InvalidInputError, match="pass either `at` or `document`"):
            lens(**query)
    with pytest.raises(InvalidInputError, match=r"found 0\. Pass `k` of 1 or more"):
        lens(at="0:1", k=0)
    with pytest.raises(NotFoundError, match="has documents 0 to 2, found document 3"):
        lens(document=3)
