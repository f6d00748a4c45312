"""Rewrites against textbook forms: the formula written out with numpy on the model's own tensors, not with our code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from textbook import GATED, blocks_of, final_norm, rows_of, run, textbook_attribution, towards
from tiny_edits import CONFIGS, make_editable

from actstore.engine.capture import corpus_run
from actstore.engine.edit.cases import tasks_of_cases
from actstore.engine.edit.forms.fine import learn, locate
from actstore.engine.edit.forms.located import _with_image
from actstore.engine.edit.requests.request import Case, Request
from actstore.engine.edit.rewrite import rewrite
from actstore.engine.edit.settings import FineSettings, KnowledgeSettings, LeastNormSettings, RewriteSettings
from actstore.engine.edit.weights import edited
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.engine.edit.readings import Reader
    from actstore.store.reader import Capture

    Editable = tuple[str, Capture, Reader]

PROMPT, TARGET = "the quick brown", " lazy dog over"


@pytest.fixture(scope="module", params=CONFIGS)
def editable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Editable:
    """A kind of model, a capture of it, and the model."""
    capture, reader = make_editable(request.param, tmp_path_factory.mktemp(request.param))
    return request.param, capture, reader


@pytest.fixture(scope="module")
def normed(tmp_path_factory: pytest.TempPathFactory) -> Editable:
    """The same of a model with a norm after each feed-forward."""
    return "normed", *make_editable("normed", tmp_path_factory.mktemp("normed"))


def tokens(reader: Reader) -> tuple[list[int], list[int]]:
    """The ids of the prompt and of the target."""
    reading = reader.read(PROMPT, TARGET)
    return reading.ids[: reading.n_prompt].tolist(), reading.ids[reading.n_prompt :].tolist()


@pytest.mark.parametrize("form", ["knowledge", "knowledge-corrected"])
def test_both_forms_of_the_knowledge_neuron_edit_are_their_formulas(editable: Editable, form: str) -> None:
    """Neurons by integrated gradients of what the model says; each token of the target moves its own neurons' rows."""
    _, capture, reader = editable
    model: Any = reader.model.model
    settings = RewriteSettings(
        form=form, requests=(Request((PROMPT,), TARGET),), least_norm=LeastNormSettings(k=5),
        knowledge=KnowledgeSettings(path_steps=6),
    )  # fmt: skip
    edit = rewrite(capture, "x", settings, reader)
    prompt, target = tokens(reader)
    assert len(target) > 1
    expected: dict[tuple[int, int], torch.Tensor] = {}
    for number, new in enumerate(target):
        ids = torch.tensor(prompt + target[:number])
        logits, activations = run(model, ids)
        old = int(logits.argmax())
        scores = np.concatenate(textbook_attribution(model, ids, old, 6))
        for flat in np.argsort(-scores, kind="stable")[:5].tolist():
            layer, neuron = divmod(flat, 24)
            row = rows_of(model, layer)[neuron]
            if form == "knowledge":
                t, t_new, sign = *(model.get_input_embeddings().weight.detach()[[old, new]]), 1.0
            else:
                t, t_new = towards(model, old), towards(model, new)
                sign = -1.0 if float(activations[layer][neuron]) < 0 else 1.0
            change = sign * (-row.norm() / t.norm() * t + 8 * row.norm() / t_new.norm() * t_new)
            expected[layer, neuron] = expected.get((layer, neuron), row) + change
    assert {(rows.layer, n) for rows in edit.record.rows for n in rows.neurons} == set(expected)
    for rows in edit.record.rows:
        for place, neuron in enumerate(rows.neurons):
            torch.testing.assert_close(
                edit.rows[rows.layer].after[place], expected[rows.layer, neuron], rtol=1e-4, atol=1e-5
            )


def test_where_images_are_read_every_step_is_a_pass_with_the_same_result(editable: Editable) -> None:
    _, _, reader = editable
    (task,) = tasks_of_cases(reader, [Case(PROMPT, "reliability", TARGET, None, "")])
    position, target = int(task.positions[0]), int(task.targets[0])
    found, activations = _with_image(reader, task, position, target, [0, 1], 4)
    ids = torch.from_numpy(task.reading.ids[: position + 1].astype(np.int64))
    expected = textbook_attribution(reader.model.model, ids, target, 4)
    _, clean = run(reader.model.model, ids)
    for layer in (0, 1):
        np.testing.assert_allclose(found[layer], expected[layer], rtol=1e-3, atol=1e-9)
        np.testing.assert_allclose(activations[layer], clean[layer].numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [*CONFIGS, "normed"])
def test_the_joint_least_norm_edit_of_several_tokens_is_the_smallest_that_meets_all_margins(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Without controls and ridge: δ = A⁺ z* V, the least-norm solution of one equation per token of the target.

    Of the last layer, whose write reaches the head as it is, or through a norm: A are activations over rms, times 1 / rms of
    what that norm reads, V the directions, over that norm's gain, and z* puts each target the margin above what is largest
    there.
    """
    capture, reader = request.getfixturevalue("normed")[1:] if kind == "normed" else make_editable(kind, tmp_path)
    model: Any = reader.model.model
    neurons = tuple((1, n) for n in range(24))
    least = LeastNormSettings(control=0.0, ridge=0.0, rounds=0, margin=1.5, neurons=neurons)
    requests = (Request((PROMPT,), TARGET),)
    from actstore.engine.edit.forms.joint import editable_layers
    from actstore.engine.edit.forms.joint_problem import JointFit, JointProblem, Selection
    from actstore.engine.edit.forms.stream import Stream
    from actstore.engine.edit.forms.targets import read_targets
    from actstore.engine.edit.requests.examples import find_examples

    examples = find_examples(capture, RewriteSettings(requests=requests, least_norm=least), reader)
    targets = read_targets(reader, examples.tasks, editable_layers(capture, Stream(capture), least))
    problem = JointProblem(capture, targets, least, lambda plan, block: np.zeros(len(block.slots), bool))
    everything = Selection(np.ones(len(targets), bool), None)
    selected = {1: list(range(24))}
    deltas = JointFit(selected, problem.fit(selected, everything), problem.directions, 1.0, 1.0).deltas()[1]

    prompt, target = tokens(reader)
    assert len(set(target)) == len(target) > 1
    streams: list[torch.Tensor] = []
    handle = final_norm(model).register_forward_pre_hook(lambda _m, args: streams.append(args[0][0, -1].detach()))
    written: list[torch.Tensor] = []
    post_norm = getattr(model.model.layers[1], "post_feedforward_layernorm", None) if kind == "normed" else None
    handles = [handle]
    if post_norm is not None:
        handles.append(post_norm.register_forward_pre_hook(lambda _m, args: written.append(args[0][0, -1].detach())))
    rows, goals, directions = [], [], []
    for number, new in enumerate(target):
        logits, activations = run(model, torch.tensor(prompt + target[:number]))
        stream = streams[-1].double()
        if model.config.model_type not in GATED:
            stream = stream - stream.mean()
        epsilon = getattr(model.config, "rms_norm_eps", None) or getattr(
            model.config, "layer_norm_epsilon", getattr(model.config, "layer_norm_eps", None)
        )
        inverse = float((stream.square().mean() + epsilon).rsqrt())
        v = (towards(model, new) - towards(model, int(logits.argmax()))).double()
        scale = 1.0
        if post_norm is not None:
            scale = float((written[-1].double().square().mean() + post_norm.variance_epsilon).rsqrt())
        rows.append(activations[1].double().numpy() * inverse * scale)
        goals.append((float(logits.detach().max() - logits.detach()[new]) + 1.5) / float(v.square().sum()))
        directions.append(v.numpy())
    for handle in handles:
        handle.remove()
    expected = np.linalg.pinv(np.stack(rows)) @ np.diag(goals) @ np.stack(directions)
    deltas = problem.stream.written(1, deltas)
    if post_norm is not None:
        expected = expected / post_norm.weight.detach().double().numpy()
    np.testing.assert_allclose(deltas.numpy(), expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [*CONFIGS, "normed"])
def test_an_edit_that_does_not_reach_its_target_says_so(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A random model of 16 dimensions does not reach every target: what it says and what the record says agree."""
    capture, reader = request.getfixturevalue("normed")[1:] if kind == "normed" else make_editable(kind, tmp_path)
    prompt, target = tokens(reader)
    reached = []
    for least in (LeastNormSettings(layers=(1,)), LeastNormSettings(layers=(1,), k=24, control=1e-4, margin=0.5)):
        edit = rewrite(capture, "x", RewriteSettings(requests=(Request((PROMPT,), TARGET),), least_norm=least), reader)
        with edited(reader.model, edit), torch.no_grad():
            said = list(prompt)
            for _ in target:
                said.append(int(reader.model.model(torch.tensor([said])).logits[0, -1].argmax()))
        reached.append(said[len(prompt) :] == target)
        assert reached[-1] == ("warning" not in edit.record.settings)


def test_prompts_are_refused_where_the_capture_lacks_the_scales_of_its_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the model's positions, which are read with their scales, controls without would have another weight."""
    monkeypatch.setattr(corpus_run, "is_scaled", lambda scaled_by: False)
    capture, reader = make_editable("normed", tmp_path)
    wanted = RewriteSettings(requests=(Request((PROMPT,), TARGET),))
    with pytest.raises(InvalidInputError, match=r"needs what scales each position .* Capture again .* `method` fine"):
        rewrite(capture, "x", wanted, reader)


@pytest.mark.parametrize("kind", [*CONFIGS, "normed"])
def test_fine_locates_the_largest_contributions_to_what_the_model_says(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """a · s · w · (γ ⊙ u) of every neuron at every position that predicts a token of the target, by plain hooks."""
    _, reader = request.getfixturevalue("normed")[1:] if kind == "normed" else make_editable(kind, tmp_path)
    model: Any = reader.model.model
    (task,) = tasks_of_cases(reader, [Case(PROMPT, "reliability", TARGET, None, "")])
    located = locate(reader, [task], FineSettings(per_position=3, leave_last=0))
    prompt, target = tokens(reader)
    inputs: dict[int, torch.Tensor] = {}
    handles = [
        model.model.layers[layer].post_feedforward_layernorm.register_forward_pre_hook(
            lambda _m, args, layer=layer: inputs.update({layer: args[0][0, -1].detach()})
        )
        for layer in ((0, 1) if kind == "normed" else ())
    ]
    expected: dict[int, set[int]] = {}
    for number in range(len(target)):
        logits, activations = run(model, torch.tensor(prompt + target[:number]))
        direction, scores = towards(model, int(logits.argmax())), []
        for layer in (0, 1):
            written = rows_of(model, layer)
            if kind == "normed":
                norm = model.model.layers[layer].post_feedforward_layernorm
                written = (
                    written * norm.weight.detach() * (inputs[layer].square().mean() + norm.variance_epsilon).rsqrt()
                )
            scores.append(activations[layer] * (written @ direction))
        for flat in torch.cat(scores).topk(3).indices.tolist():
            expected.setdefault(flat // 24, set()).add(flat % 24)
    for handle in handles:
        handle.remove()
    assert {layer: set(neurons) for layer, neurons in located.items()} == expected


def test_one_step_of_fine_is_the_papers_loss_and_adams_first_step(editable: Editable) -> None:
    """max −log p(y_j) + KL(before ‖ after) in the prompt + 10 · max −log(1 − p(y_j | text)), of δ added to the rows.

    Adam's first step is −rate · g / (|g| + ε) with the gradient g of that loss at δ = 0, where KL is 0 and its gradient too.
    """
    _, _, reader = editable
    model: Any = reader.model.model
    (task,) = tasks_of_cases(reader, [Case(PROMPT, "reliability", TARGET, None, "")])
    neurons = {0: [1, 5, 9], 1: [0, 23]}
    settings = FineSettings(rate=0.05, steps=1)
    learned = learn(reader, [task], neurons, settings)
    prompt, target = tokens(reader)
    ids = torch.tensor([prompt + target])
    last = len(prompt) - 1
    parameters = {layer: torch.zeros(len(indices), 16, requires_grad=True) for layer, indices in neurons.items()}

    def logits(deltas: dict[int, torch.Tensor]) -> torch.Tensor:
        """What a · δ adds to the output of each feed-forward is added by hooks."""
        handles = []
        for layer, delta in deltas.items():

            def hook(_m: Any, args: Any, output: Any, layer: int = layer, delta: torch.Tensor = delta) -> Any:
                return output + args[0][..., neurons[layer]] @ delta

            handles.append(blocks_of(model)[layer].register_forward_hook(hook))
        found = model(ids).logits[0]
        for handle in handles:
            handle.remove()
        return found

    with torch.no_grad():
        before = logits({})[:last].log_softmax(-1)

    def loss(deltas: dict[int, torch.Tensor]) -> torch.Tensor:
        after = logits(deltas)
        said = after[last:-1].log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)]
        kept = (before.exp() * (before - after[:last].log_softmax(-1))).sum(1).mean()
        again = -torch.log(1 - after[-1].softmax(-1)[torch.tensor(target)])
        return -said.min() + settings.kl * kept + settings.repetition * again.max()

    gradients = torch.autograd.grad(loss(parameters), list(parameters.values()))
    for (layer, delta), gradient in zip(learned.deltas.items(), gradients, strict=True):
        expected = -settings.rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(delta, expected, rtol=1e-3, atol=1e-5, msg=f"layer {layer}")
    with torch.no_grad():
        assert learned.loss == pytest.approx(float(loss(dict(learned.deltas))), rel=1e-4)
