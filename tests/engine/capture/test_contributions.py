"""Contributions to next tokens that are summed while the model runs: what a stored capture gives, without the values."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tiny_text import save_tokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import actstore
from actstore.engine.capture.run import RunOptions
from actstore.engine.contributions import rank
from actstore.engine.contributions.next_tokens import NextTokens
from actstore.store.capture.statistics.contribution_sums import read_sums
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actstore.store.reader import Capture

SETTINGS: dict[str, Any] = {"context": 16, "max_tokens": 600, "block_tokens": 128, "label_columns": ["language"]}
BULK: dict[str, Any] = SETTINGS | {"precision": "none", "contributions": "next", "by": "language"}


def save_gpt2(folder: Path) -> None:
    """A final norm that centres, and biases."""
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=512, n_positions=64, n_embd=16, n_layer=2, n_head=2, n_inner=24)
    GPT2LMHeadModel(config).save_pretrained(folder)


def save_mixtral(folder: Path) -> None:
    """Experts, to which few positions are routed, in bfloat16."""
    torch.manual_seed(4)
    config = MixtralConfig(
        vocab_size=512, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral"])
def model(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "llama":
        return tiny_model
    folder = tmp_path_factory.mktemp("models") / f"tiny-{request.param}"
    {"gpt2": save_gpt2, "mixtral": save_mixtral}[request.param](folder)
    save_tokenizer(folder)
    return folder


def rows(store: Path, **query: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = actstore.open(store).contributions(k=1000, **query).to_arrow().to_pydict()
    return found


def test_they_are_what_a_stored_capture_gives(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, bulk = tmp_path / "stored", tmp_path / "bulk"
    actstore.capture(str(model), corpus, stored, precision="exact", **SETTINGS)
    done = actstore.capture(str(model), corpus, bulk, **BULK)
    assert len(done.blocks) > 1
    assert not list(bulk.glob("captures/corpus/values"))
    expected = {by: rows(stored, by=by) for by in ("language", None)}

    def never(*_: Any) -> None:
        raise AssertionError("activations are read")

    monkeypatch.setattr(rank, "sum_contributions", never)
    for by, of_stored in expected.items():
        found = rows(bulk, by=by)
        assert found["tokens"] == of_stored["tokens"]
        assert found["label"] == of_stored["label"]
        by_name = [
            dict(zip(zip(one["label"], one["name"], strict=True), one["total"], strict=True))
            for one in (found, of_stored)
        ]
        assert by_name[0].keys() == by_name[1].keys()
        largest = max(map(abs, of_stored["total"]))
        np.testing.assert_allclose(
            [by_name[0][key] for key in by_name[1]], [*by_name[1].values()], rtol=1e-5, atol=1e-6 * largest
        )
    assert actstore.open(bulk).verify() == []


@pytest.fixture(scope="module")
def bulk(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    store = tmp_path_factory.mktemp("bulk") / "store"
    return actstore.capture(str(tiny_model), corpus, store, **BULK)


def sums(capture: Capture) -> dict[int, Any]:
    widths = capture.record.layers("mlp.post")
    return read_sums(capture.folder, capture.record, widths, [*capture.blocks])


def test_workers_and_a_resumed_run_give_the_same_bytes(
    bulk: Capture, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    again = tmp_path / "store"
    shutil.copytree(bulk.folder.location, again)
    for name in ("blocks/1.json", "neurons.parquet", "committed.json"):
        (again / "captures/corpus" / name).unlink()
    (again / "captures/corpus/blocks/1.contributions.safetensors.zst").write_bytes(b"half")
    actstore.capture(model, corpus, again, options=RunOptions(resume=True, tokenizer=str(tiny_model)), **BULK)
    for block in bulk.blocks:
        name = f"captures/corpus/blocks/{block}.contributions.safetensors.zst"
        assert (again / name).read_bytes() == bulk.folder.read(name)


def test_a_damaged_block_is_found_and_not_read(bulk: Capture, tmp_path: Path) -> None:
    path = shutil.copytree(bulk.folder.location, tmp_path / "store")
    file = path / "captures/corpus/blocks/0.contributions.safetensors.zst"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(FormatError, match=r"0\.contributions\.safetensors\.zst is damaged: checksum"):
        actstore.open(path).contributions()
    assert [damage.key for damage in actstore.open(path).verify()] == ["blocks/0.contributions.safetensors.zst"]


def test_what_only_values_can_answer_says_so(bulk: Capture) -> None:
    store = actstore.open(bulk.folder.location)
    target = int(NextTokens(bulk).of_block(0)[1])
    for query in ({"target": target}, {"gain": False}):
        with pytest.raises((InvalidInputError, NotFoundError), match=r"no values|keeps no|precision"):
            store.contributions(**query)
    assert store.contributions(k=3).to_arrow()["tokens"][0].as_py() == sum(
        {row["label"]: row["tokens"] for row in store.contributions(by="language", k=1).to_arrow().to_pylist()}.values()
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"by": "language"}, r'`by` says by which labels .* `contributions="next"`'),
        ({"contributions": "last"}, "`contributions` "),
        (
            {"contributions": "next", "by": "genre"},
            "`by` is one of the label columns, found 'genre'; they are: language",
        ),
        ({"contributions": "next", "sites": ["mlp.in"]}, "at the site mlp.post of the language model"),
    ],
)
def test_what_cannot_be_summed_is_refused(
    tiny_model: Path, corpus: Path, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        actstore.capture(str(tiny_model), corpus, tmp_path / "store", **SETTINGS | asked)
    assert not (tmp_path / "store").exists()


def test_a_model_without_an_unembedding_is_refused_before_anything_is_written(corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=512, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=8,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    save_tokenizer(tmp_path / "opt")
    with pytest.raises(InvalidInputError, match=r"logits, and .*opt has no unembedding\. Leave `contributions` out"):
        actstore.capture(str(tmp_path / "opt"), corpus, tmp_path / "store", **BULK)
    assert not (tmp_path / "store").exists()


def test_the_commands(tiny_model: Path, corpus: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    store = tmp_path / "store"
    options = ("--label", "language", "--max-tokens", "300", "--context", "16", "--precision", "none", "--quiet")
    assert (
        cli("capture", tiny_model, corpus, store, *options, "--contributions", "next", "--by", "language").status == 0
    )
    shown = cli("contributions", store, "--next-tokens", "--by", "language", "-k", "2", "--quiet")
    assert shown.status == 0
    assert all(f"language={label}" in shown.out for label in ("en", "fr", "py"))
