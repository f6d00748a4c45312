"""What other tools leave, imported: the same values as captured, and the same refusals for what does not fit."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from tiny_text import save_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import actstore
from actstore.engine.building.importing import READERS
from actstore.engine.building.names import FORMATS
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Result  # type: ignore[import-not-found]

SITES = ("mlp.post", "resid.pre", "resid.mid", "resid.post", "attn.out")


@pytest.fixture(scope="module")
def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, n_inner=24, vocab_size=50)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def store(gpt2: GPT2LMHeadModel, tokens: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the tiny GPT-2, which has captured every site over the tokens."""
    path: Path = tmp_path_factory.mktemp("imports") / "store"
    corpus = [{"input_ids": row} for row in tokens.tolist()]
    actstore.capture(gpt2, corpus, path, sites=SITES, context=20)
    return path


def plain_cache(model: GPT2LMHeadModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Activations by hook name, as plain hooks of torch see them."""
    cache: dict[str, torch.Tensor] = {}

    def keep(name: str, *, output: bool) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, result: Any = None) -> None:
            value = result if output else inputs[0]
            cache[name] = (value[0] if isinstance(value, tuple) else value).detach()

        return hook

    handles = []
    for i, block in enumerate(model.transformer.h):
        for module, name in (
            (block, "hook_resid_pre"),
            (block.ln_2, "hook_resid_mid"),
            (block.mlp.c_proj, "mlp.hook_post"),
        ):
            handles.append(module.register_forward_pre_hook(keep(f"blocks.{i}.{name}", output=False)))
        for module, name in ((block, "hook_resid_post"), (block.attn, "hook_attn_out"), (block.mlp, "hook_mlp_out")):
            handles.append(module.register_forward_hook(keep(f"blocks.{i}.{name}", output=True)))
    with torch.inference_mode():
        model(tokens)
    for handle in handles:
        handle.remove()
    return cache


def check_same(store: Path, name: str, sites: tuple[str, ...] = SITES) -> None:
    """An imported capture has the values of the one that the store captured, token for token."""
    opened = actstore.open(store)
    ours, theirs = opened.capture("corpus"), opened.capture(name)
    assert set(theirs.record.sites) == set(sites)
    keys = [
        list(zip(c.tokens()["document"].to_pylist(), c.tokens()["position"].to_pylist(), strict=True))
        for c in (ours, theirs)
    ]
    order = [keys[0].index(key) for key in keys[1]]
    assert ours.tokens()["id"].to_numpy()[order].tolist() == theirs.tokens()["id"].to_pylist()
    for site in sites:
        assert theirs.record.layers(site) == ours.record.layers(site)
        for layer, width in ours.record.layers(site).items():
            for neuron in range(width):
                np.testing.assert_allclose(
                    theirs.activations(layer, neuron, site), ours.activations(layer, neuron, site)[order], atol=1e-5
                )


def test_every_format_has_a_reader() -> None:
    assert set(READERS) == set(FORMATS)


def test_a_cache_by_hook_names(gpt2: GPT2LMHeadModel, tokens: torch.Tensor, store: Path, tmp_path: Path) -> None:
    cache = plain_cache(gpt2, tokens)
    actstore.import_activations(cache, store, name="cache", ids=tokens)
    check_same(store, "cache")
    for row in range(3):  # a file per sequence
        file = {name: value[row : row + 1].clone() for name, value in cache.items()}
        save_file(file | {"tokens": tokens[row : row + 1].contiguous()}, tmp_path / f"{row}.safetensors")
    actstore.import_activations(tmp_path, store, name="files")
    check_same(store, "files")
    turned = actstore.import_activations(
        cache, store, name="turned", ids=tokens, order="mlp.post=token,resid.post=neuron"
    )
    assert turned.record.order == {"mlp.post": "token", "resid.pre": "token", "resid.mid": "token", "attn.out": "token"}
    check_same(store, "turned")
    own = actstore.import_activations(cache, store, name="own", ids=tokens, hooks=["hook_mlp_out"], layers=1)
    assert own.record.sites == {"mlp_out": {"1": 16}}
    with pytest.raises(InvalidInputError, match="None of 12 tensors is of a site that was asked for"):
        actstore.import_activations(cache, store, name="none", layers=7)


def test_transformer_lens(gpt2: GPT2LMHeadModel, tokens: torch.Tensor, store: Path, tmp_path: Path) -> None:
    """The real thing, where it is installed."""
    bridge = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens is not installed")
    gpt2.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, 300)
    with torch.inference_mode():
        model = bridge.TransformerBridge.boot_transformers(str(tmp_path), hf_model=copy.deepcopy(gpt2), device="cpu")
        _, cache = model.run_with_cache(tokens)
    actstore.import_activations(cache, store, name="lens", ids=tokens)
    check_same(
        store, "lens", tuple(site for site in SITES if site in actstore.open(store).capture("lens").record.sites)
    )
    assert {"mlp.post", "resid.pre", "resid.post", "attn.out"} <= set(actstore.open(store).capture("lens").record.sites)


def test_hidden_states_per_sample(
    gpt2: GPT2LMHeadModel, tokens: torch.Tensor, store: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    """Number n of vLLM is the stream after n layers."""
    cache = plain_cache(gpt2, tokens)
    states = torch.stack([cache["blocks.0.hook_resid_post"], cache["blocks.1.hook_resid_post"]], dim=2)
    for row in (2, 10, 0):
        at = {0: 0, 2: 1, 10: 2}[row]
        save_file(
            {"hidden_states": states[at].contiguous(), "token_ids": tokens[at].contiguous()},
            tmp_path / f"hs_{row}.safetensors",
        )
    found = cli("import", tmp_path, store, "--name", "states", "--layers", "1,2", "--json").json
    assert (found["tokens"], found["documents"], found["sites"]) == (60, 3, {"resid.post": [0, 1]})
    check_same(store, "states", ("resid.post",))
    assert actstore.open(store).capture("states").documents()["source"].to_pylist()[2] == "hs_10.safetensors"
    assert (
        "capture 'states', 60 tokens of 3 sequences: resid.post of 2 layers."
        in cli("import", tmp_path, store, "--name", "states", "--layers", "1,2", "--replace").out
    )
    assert actstore.open(store).capture("states").record.order == {"resid.post": "token"}
    cli("import", tmp_path, store, "--name", "states", "--layers", "1,2", "--replace", "--order", "neuron")
    assert actstore.open(store).capture("states").record.order == {}
    check_same(store, "states", ("resid.post",))
    wrong = cli("import", tmp_path, store, "--name", "more", "--layers", "1,2", "--order", "rows")
    assert (wrong.status, "--order is neuron or token" in wrong.err) == (2, True)
    refused = cli("import", tmp_path, store, "--name", "more", "--layers", "1,2,3")
    assert (refused.status, "expected (20, 3, width). Check --layers" in refused.err) == (2, True)
    assert "do not say of which layers they are. Pass --layers" in cli("import", tmp_path, store, "--name", "more").err


@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_cached_data_set_of_saelens(
    gpt2: GPT2LMHeadModel,
    tokens: torch.Tensor,
    store: Path,
    tmp_path: Path,
    cli: Callable[..., Result],
    is_loaded: bool,
) -> None:
    """As datasets writes Array2D: an extension of nested lists, in Arrow's stream format. Loaded, it registers the type."""
    if is_loaded:
        import datasets  # noqa: F401
    values = plain_cache(gpt2, tokens)["blocks.1.hook_resid_post"]
    name = "blocks.1.hook_resid_post"
    storage = pa.array(values.tolist(), pa.list_(pa.list_(pa.float32())))
    ids = pa.array(tokens.tolist(), pa.list_(pa.int32(), 20))
    extension = {
        "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
        "ARROW:extension:metadata": json.dumps([[20, 16], "float32"]),
    }
    field = pa.field(name, storage.type, metadata=extension)
    schema = pa.schema([field, pa.field("token_ids", ids.type)])
    with pa.OSFile(str(tmp_path / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as out:
        for first in (0, 2):
            out.write_batch(pa.record_batch([storage.slice(first, 2), ids.slice(first, 2)], schema=schema))
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    actstore.import_activations(tmp_path, store, name=(made := f"sae-{is_loaded}"))
    opened = actstore.open(store)
    ours, theirs = opened.capture(), opened.capture(made)
    assert theirs.record.sites == {"resid.post": {"1": 16}}
    assert theirs.tokens()["id"].to_pylist() == tokens.flatten().tolist()
    np.testing.assert_allclose(theirs.activations(1, 3, "resid.post"), values[..., 3].flatten(), atol=1e-6)
    assert ours.record.model_fingerprint == theirs.record.model_fingerprint
    (tmp_path / "state.json").write_text("{}")
    assert "is no data set saved with save_to_disk" in cli("import", tmp_path, store, "--name", "x").err
    assert "There is nothing at" in cli("import", tmp_path / "nowhere", store, "--name", "x").err
