"""`actstore multimodal` on planted captions: what it says, what it draws, and how it refuses."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

# Importlib mode leaves support modules off the path.
import planted_captions
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Result  # type: ignore[import-not-found]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two captures, `images` and `shuffled`; of `images`, the picture of document 1 is there."""
    folder = tmp_path_factory.mktemp("multimodal")
    names = [str(folder / f"{i:03d}.png") for i in range(5)]
    Image.fromarray(np.zeros((24, 30, 3), np.uint8)).save(names[1])
    planted_captions.plant_captions(folder / "store", images=names)
    planted_captions.plant_captions(folder / "store", "shuffled", images=names, seed=0)
    return folder / "store"


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore multimodal …` in this process."""
    return functools.partial(cli, "multimodal")


COMMON = ("--capture", "images", "--nouns", "content")


def test_every_noun_of_every_caption(cli: Callable[..., Result], path: Path) -> None:
    value = cli(path, *COMMON, "-k", "4", "--json").json
    assert value["nouns_by"].startswith("all words but")
    assert (value["capture"], value["forms"], value["k"], value["gain"]) == ("images", ["post"], 4, True)
    captions = value["captions"]
    assert [caption["document"] for caption in captions] == [0, 1, 2, 3, 4]
    assert captions[0]["caption"] == "a red circle and a green square."
    assert captions[3]["nouns"] == []
    assert [noun["noun"] for noun in captions[1]["nouns"]] == ["green", "circles", "star"]
    noun = captions[1]["nouns"][1]
    assert (noun["text"], noun["position"], len(noun["neurons"])) == (" cir", 16, 4)
    scores = [neuron["score"] for neuron in noun["neurons"]]
    assert scores == sorted(scores, reverse=True)
    assert all(len(neuron["tokens"]) == 10 for neuron in noun["neurons"])
    neurons = [neuron for caption in captions for noun in caption["nouns"] for neuron in noun["neurons"]]
    assert {("bottom_tokens" in neuron, neuron["activation"] < 0) for neuron in neurons} == {
        (True, True),
        (False, False),
    }
    assert all(neuron["writes"] == neuron.get("bottom_tokens", neuron["tokens"]) for neuron in neurons)
    assert cli("show", path, *COMMON, "-k", "4", "--json").json == value


def test_forms_side_by_side(cli: Callable[..., Result], path: Path) -> None:
    both = cli(path, *COMMON, "-k", "6", "--activation", "both", "--json").json
    for form in ("post", "gate"):
        alone = cli(path, *COMMON, "-k", "6", "--activation", form, "--json").json
        for a, b in zip(both["captions"], alone["captions"], strict=True):
            assert [noun["forms"][form] for noun in a["nouns"]] == [noun["neurons"] for noun in b["nouns"]]
    noun = both["captions"][0]["nouns"][0]
    names = [{neuron["neuron"] for neuron in noun["forms"][form]} for form in ("post", "gate")]
    assert noun["overlap"] == len(names[0] & names[1]) / 6
    paper = cli(path, *COMMON, "-k", "6", "--activation", "gate", "--paper-form", "--json").json
    assert paper["captions"] != alone["captions"]
    assert not paper["gain"]


def test_nouns_put_together(cli: Callable[..., Result], path: Path) -> None:
    value = cli(path, *COMMON, "-k", "3", "--by-noun", "--json").json
    assert [(noun["noun"], noun["captions"]) for noun in value["nouns"]] == [
        ("circle", 2), ("green", 2), ("red", 2), ("square", 2), ("star", 2), ("circles", 1),
    ]  # fmt: skip
    assert all(neuron["share"] in (0.5, 1) for noun in value["nouns"][:5] for neuron in noun["neurons"])
    shown = cli(path, *COMMON, "-k", "3", "--by-noun", "--rows", "1").out
    assert shown.startswith("circle: 2 captions")
    assert "… and 5 more nouns" in shown


def _own_tokens(path: Path, neuron: str) -> tuple[list[str], list[str]]:
    from actstore.store.reader import Store

    row = Store(path).sql(f"select top_texts, bottom_texts from model where name = '{neuron}'").to_pylist()[0]
    return row["top_texts"], row["bottom_texts"]


def test_what_a_neuron_writes_follows_the_sign_of_its_activation(cli: Callable[..., Result], tmp_path: Path) -> None:
    # Below zero everywhere: what reaches the stream is -w, whose tokens are those that w suppresses.
    path = tmp_path / "store"
    planted_captions.plant_captions(path, values=lambda values, site, layer: -np.abs(values))
    value = cli(path, *COMMON, "-k", "3", "--by-noun", "--json").json
    rows = [(noun, row) for noun in value["nouns"] for row in noun["neurons"]]
    assert len(rows) > 10
    for noun, row in rows:
        top, bottom = _own_tokens(path, row["neuron"])
        assert (row["tokens"], row["bottom_tokens"], row["writes"]) == (top, bottom, bottom)
        assert row["activation"] < 0 < row["score"]
        assert (row["above_zero"], row["below_zero"]) == (0, round(row["share"] * noun["captions"]))
    noun, row = rows[0]
    lines = cli(path, *COMMON, "-k", "3", "--by-noun", "--rows", "1").out.splitlines()
    assert lines[1].split()[:5] == ["neuron", "score", "captions", "above", "zero"]
    shown = next(line for line in lines if line.startswith(row["neuron"]))
    assert f"0 of {row['below_zero']}" in shown
    assert row["bottom_tokens"][0].replace(" ", "␣") in shown
    assert row["tokens"][0].replace(" ", "␣") not in shown.split("of", 1)[1].split()
    for caption in cli(path, *COMMON, "-k", "3", "--json").json["captions"]:
        for noun in caption["nouns"]:
            assert all(row["writes"] == _own_tokens(path, row["neuron"])[1] for row in noun["neurons"])


def test_what_a_neuron_writes_is_by_its_activation_whatever_its_gate(
    cli: Callable[..., Result], tmp_path: Path
) -> None:
    signs = {"mlp.gate": 1, "mlp.post": -1}
    both, alone = tmp_path / "both", tmp_path / "alone"
    planted_captions.plant_captions(both, values=lambda values, site, layer: signs[site] * np.abs(values))
    asked = (*COMMON, "-k", "3", "--activation", "gate")
    for by in ((), ("--by-noun",)):
        value = cli(both, *asked, *by, "--json").json
        nouns = value["nouns"] if by else [noun for caption in value["captions"] for noun in caption["nouns"]]
        for row in (row for noun in nouns for row in noun["neurons"]):
            assert row["activation"] > 0  # the gate's
            assert row["writes"] == row["bottom_tokens"] == _own_tokens(both, row["neuron"])[1]
    # Where the capture lacks the activation, either side of zero is named.
    planted_captions.plant_captions(alone, sites=("mlp.gate",))
    row = cli(alone, *asked, "--by-noun", "--json").json["nouns"][0]["neurons"][0]
    assert row["writes"] is None
    assert (row["tokens"], row["bottom_tokens"]) == _own_tokens(alone, row["neuron"])
    assert "when above zero: " in cli(alone, *asked, "--by-noun").out
    assert "; when below: " in cli(alone, *asked).out


def test_what_people_see(cli: Callable[..., Result], path: Path) -> None:
    shown = cli(path, *COMMON, "-k", "2", "--document", "1", "--activation", "both").out
    assert shown.splitlines()[0].endswith("001.png: there is a green circles with a green star")
    assert "circles (gate, " in shown
    assert "writes" in shown
    assert shown.splitlines()[-1].startswith("3 nouns of 1 caption; nouns by all words but ")
    few = cli(path, *COMMON, "-k", "2", "--rows", "2").out
    assert "… and 3 more captions: --rows 0 shows all." in few
    assert "11 nouns of 5 captions (1 without one)" in few


def test_maps_of_every_noun(cli: Callable[..., Result], path: Path, tmp_path: Path) -> None:
    value = cli(path, *COMMON, "-k", "2", "--output", tmp_path / "maps", "--json").json
    files = {Path(file["file"]).name: file for file in value["files"]}
    assert len(files) == 11
    assert set(files) == {file.name for file in (tmp_path / "maps").iterdir()}
    assert files["0001-green.png"]["note"] == ""
    assert files["0000-red.png"]["note"].endswith("000.png no longer exists")
    with Image.open(tmp_path / "maps" / "0001-green.png") as picture:
        assert picture.format == "PNG"
    line = ("--document", "0", "--output", tmp_path / "more", "--map-of", "activation")
    shown = cli(path, *COMMON, "-k", "2", *line).out
    assert (tmp_path / "more" / "0000-red.png").read_bytes() != (tmp_path / "maps" / "0000-red.png").read_bytes()
    assert f"4 maps in {tmp_path / 'more'}, 4 without the image" in shown


def test_the_map_of_chosen_neurons(cli: Callable[..., Result], path: Path, tmp_path: Path) -> None:
    from actstore.store.reader import Store

    out = tmp_path / "map.png"
    line = ("map", path, "L1.N3", "L0.N2", "--document", "1", "--output", out, "--capture", "images")
    value = cli(*line, "--json").json
    assert (value["document"], value["neurons"], value["note"]) == (1, ["L1.N3", "L0.N2"], "")
    assert out.is_file()
    capture = Store(path).capture("images")
    tokens = capture.tokens().to_pydict()
    rows = [i for i in range(len(tokens["id"])) if tokens["document"][i] == 1 and 1 <= tokens["position"][i] <= 9]
    means = (capture.activations(1, 3) + capture.activations(0, 2)) / 2
    np.testing.assert_allclose([patch["value"] for patch in value["patches"]], means[rows], rtol=1e-6)
    assert [(p["row"], p["column"]) for p in value["patches"]] == [(r, c) for r in range(3) for c in range(3)]
    assert cli(*line).out.startswith(f"{out}: 9 patches, the largest mean ")


def test_properties_beside_baselines(cli: Callable[..., Result], path: Path) -> None:
    value = cli("properties", path, *COMMON, "-k", "5", "--shuffled", "shuffled", "--json").json
    assert set(value["rankings"]) == {"contribution", "activation", "random"}
    ours, chance = value["rankings"]["contribution"], value["rankings"]["random"]
    assert ours["region invariance"]["mean"] == 1  # the same values were planted in both
    assert chance["region invariance"]["mean"] < 0.5
    assert ours["specificity"]["n"] == 6
    shown = cli("properties", path, *COMMON, "-k", "5", "--regions", "none").out
    assert "cross-image invariance" in shown
    assert "region invariance" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--regions", "pixels"), "Name both, or leave --shuffled out."),
        (("--regions", "embeddings", "--shuffled", "shuffled"), "Name both, or leave --shuffled out."),
        (("--regions", "none", "--model", "gpt2"), "--model runs for --gradient and --regions embeddings only."),
    ],
)
def test_orders_of_patches_that_do_not_go_together(
    refused: Callable[..., str], path: Path, arguments: tuple[str, ...], words: str
) -> None:
    assert words in refused("properties", path, *COMMON, *arguments)


def test_shuffled_images_with_the_answers_of_a_capture(cli: Callable[..., Result], path: Path, tmp_path: Path) -> None:
    value = cli(
        "shuffle", path.parent, "--output", tmp_path / "out", "--patch", "6", "--captions", path, *COMMON[:2], "--json"
    ).json
    assert (value["images"], value["unreadable"]) == (1, [])
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()]
    assert row == {"image": "001.png", "prompt": "a photo:", "caption": "there is a green circles with a green star"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "has no capture 'corpus'. Its captures are: images, shuffled."),
        (("--capture", "images", "--noun-file", "verbs.txt"), "'verbs.txt' is neither"),
        (("--capture", "images", "--noun-file", "verbs.txt", "--nouns", "content"), "Leave one of them out"),
        (("--capture", "images", "--document", "7"), "has documents 0 to 4, found document 7."),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    refused: Callable[..., str], path: Path, arguments: tuple[str, ...], words: str
) -> None:
    assert words in refused(path, *arguments)


def test_mistakes_of_maps(refused: Callable[..., str], path: Path, tmp_path: Path) -> None:
    line = ("map", path, "L0.N1", "--capture", "images")
    assert "found 'map.jpg'" in refused(*line, "--document", "0", "--output", tmp_path / "map.jpg")
    assert "documents 0 to 4, found document 5" in refused(*line, "--document", "5", "--output", tmp_path / "map.png")
    (tmp_path / "file").touch()
    assert "found the file" in refused(path, "--capture", "images", "--output", tmp_path / "file")


def test_a_capture_of_text_holds_no_answers(
    refused: Callable[..., str], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    from actstore.engine.capture.api import capture

    capture(str(tiny_model), corpus, tmp_path / "store", max_documents=2)
    assert "holds no answer to a prompt" in refused(tmp_path / "store")
    line = ("map", tmp_path / "store", "L0.N1", "--document", "0", "--output", tmp_path / "map.png")
    assert "is one of text" in refused(*line)


@pytest.mark.slow
def test_without_transformers_tokenizers_and_the_model(
    run_without: Callable[..., Any], path: Path, tmp_path: Path
) -> None:
    shown = ("multimodal", path, *COMMON, "-k", "2", "--json", "--output", "maps")
    drawn = ("multimodal", "map", path, "L0.N1", "--document", "1", "--output", "map.png", "--capture", "images")
    measured = ("multimodal", "properties", path, *COMMON, "-k", "3", "--shuffled", "shuffled")
    done = run_without(("transformers", "tokenizers"), shown, drawn, measured)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[0])["captions"]) == 5
    assert (tmp_path / "map.png").is_file()
    assert len(list((tmp_path / "maps").iterdir())) == 11
