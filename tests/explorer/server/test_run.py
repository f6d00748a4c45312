"""A server as it is started: over a socket, ended as a user ends it, and with the model for new text."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch

import actstore
from actstore.explorer.server.live import LiveModel
from actstore.store.errors import ActstoreError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(text_path: Path) -> None:
    command = [sys.executable, "-m", "actstore.cli", "serve", str(text_path), "--no-browser", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", said["url"])
        with urlopen(f"{said['url']}api/0/neuron/corpus/mlp.post/L1.N3") as reply:
            assert json.load(reply)["neuron"] == "L1.N3"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_a_port_that_is_taken_is_refused(refused: Callable[..., str], text_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        sentence = refused("serve", text_path, "--port", taken.getsockname()[1], "--no-browser")
    assert re.search(r"Nothing can listen at 127\.0\.0\.1:\d+ \(.*in use.*\)\. Choose another --port", sentence)


def test_a_store_that_is_not_there_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "There is no store" in refused("serve", tmp_path, "--no-browser")


@pytest.fixture(scope="module")
def live(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[actstore.Store, LiveModel]:
    path = tmp_path_factory.mktemp("live") / "tiny.actstore"
    actstore.capture(str(tiny_model), corpus, path, context=32, max_tokens=300, precision="exact")
    store = actstore.open(path)
    return store, LiveModel.load(store, str(tiny_model))


def test_new_text_has_the_activations_of_a_plain_pass(live: tuple[actstore.Store, LiveModel], tiny_model: Path) -> None:
    store, model = live
    found = model.document(store, "corpus", "mlp.post", "the quick brown fox", "L1.N3,L0.N5")
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    seen: dict[int, torch.Tensor] = {}
    for number, block in enumerate(plain.model.layers):
        block.mlp.down_proj.register_forward_pre_hook(lambda _, inputs, n=number: seen.__setitem__(n, inputs[0][0]))
    ids = [one["token"] for one in found["tokens"]]
    with torch.no_grad():
        plain(torch.tensor([ids]))
    for one, (layer, index) in zip(found["neurons"], [(1, 3), (0, 5)], strict=True):
        np.testing.assert_allclose(one["values"], seen[layer][:, index].numpy(), rtol=1e-3, atol=1e-6)
    table = {row["name"]: row for row in store.neurons().to_pylist()}
    scores = {
        f"L{layer}.N{i}": (float(values[:, i].max()) - table[f"L{layer}.N{i}"]["mean"]) / table[f"L{layer}.N{i}"]["std"]
        for layer, values in seen.items()
        for i in range(values.shape[1])
    }
    best = sorted(scores, key=lambda name: -scores[name])[:5]
    assert [one["neuron"] for one in found["peaks"][:5]] == best


def test_new_text_that_cannot_be_read_is_refused(live: tuple[actstore.Store, LiveModel]) -> None:
    store, model = live
    long = model.document(store, "corpus", "mlp.post", "fox " * 500, "")
    assert long["n_tokens"] == 64  # the model's context
    assert long["n_cut"] > 0
    with pytest.raises(ActstoreError, match="no capture"):
        model.document(store, "nothing", "mlp.post", "x", "")
    with pytest.raises(InvalidInputError, match="At most 8"):
        model.document(store, "corpus", "mlp.post", "x", ",".join(f"L0.N{i}" for i in range(9)))


def test_another_model_is_refused(live: tuple[actstore.Store, LiveModel], text: actstore.Store) -> None:
    _, model = live
    loaded: Any = model.model
    with pytest.raises(ActstoreError):
        LiveModel(loaded, text)
