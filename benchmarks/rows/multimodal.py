"""Multi-modal neurons: the neurons of all nouns of 1,000 captions, from a store against the published procedure.

The procedure (Pan et al. 2024, as in its public code): generate the answer to each image token by token, with the whole
sequence read anew at every step and the gates of all layers hooked; multiply the write vectors by the whole unembedding,
kept in memory for all layers; then rank, noun by noun.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from actstore.engine.capture.api import capture
from actstore.engine.models.load import load_model
from actstore.engine.models.vision.inputs import VisionProcessor
from actstore.engine.multimodal.captions import special_tokens, spell
from actstore.engine.multimodal.find import find_multimodal
from actstore.engine.multimodal.nouns import noun_finder
from actstore.engine.multimodal.replay import Replay
from actstore.engine.multimodal.result import FindSettings
from actstore.kernels.torch_threads import torch_threads
from actstore.store.reader import Store
from benchmarks.registry import Candidate, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

DEMO = Path(__file__).parents[2] / "demo"
MODEL = DEMO / "models" / "shapes-llava"
SAMPLED = 10
"""Number of captions for which the published procedure is run."""
LONGEST = 50
"""Maximum number of generated tokens, as published."""


class Published:
    """The published procedure on a LLaVA."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._model = replay.model.model
        self._layers = [s for s in replay.model.spec.layers if s.part == "language"]
        self._special = special_tokens(replay.capture.store)
        self.steps = 0
        # Once for all captions, so no part of the time of a few, which is multiplied.
        unembedding = self._model.get_output_embeddings().weight
        self._projections = torch.cat([replay.model.write_vectors(s.layer) @ unembedding.T for s in self._layers])

    def run(self, captions: Any, k: int) -> list[list[Tensor]]:
        """The best neurons of every noun of every caption that the model generates."""
        return [self._one(self._replay.encode(caption, with_answer=False), k) for caption in captions]

    def _one(self, encoded: Any, k: int) -> list[Tensor]:
        inputs = self._replay.arguments([encoded])
        end = self._model.generation_config.eos_token_id
        ids, gates, answer = inputs["input_ids"], [], []
        seen: list[Tensor] = []
        blocks = [self._model.get_submodule(s.module.rpartition(".")[0]) for s in self._layers]
        handles = [block.act_fn.register_forward_hook(lambda _m, _a, out: seen.append(out[0, -1])) for block in blocks]
        try:
            for _ in range(LONGEST):
                seen.clear()
                mask = torch.ones_like(ids)
                logits = self._model(**(inputs | {"input_ids": ids, "attention_mask": mask}), use_cache=False).logits
                self.steps += 1
                token = int(logits[0, -1].argmax())
                if token == end:
                    break
                gates.append(torch.cat(seen[-len(blocks) :]))
                answer.append(token)
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        finally:
            for handle in handles:
                handle.remove()
        text, stops = spell(self._replay.capture.store, torch.tensor(answer).numpy(), self._special)
        rankings = []
        for word in noun_finder("content").first_of_each(text):
            at = int((torch.from_numpy(stops) <= len(text[: word.start].encode())).sum())
            rankings.append((gates[at] * self._projections[:, answer[at]]).topk(k).indices)
        return rankings


@contextmanager
def prepare(quick: bool) -> Iterator[dict[str, Candidate]]:
    """A store of the demo captioner's answers to drawn pictures."""
    sys.path.insert(0, str(DEMO / "training"))
    from picture_words import PAPER_PROMPT
    from pictures import write_pictures

    n_captions = 50 if quick else 1000
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name, torch_threads(1):
        path = Path(name)
        write_pictures(path / "pictures", n_captions, prompt=PAPER_PROMPT)
        capture(str(MODEL), path / "pictures", path / "store", positions="generated", exemplars=0)
        settings = FindSettings(k=20, nouns="content")
        neurons = find_multimodal(Store(path / "store").capture(), settings)
        loaded = load_model(MODEL, dtype="float32")
        with torch.inference_mode():
            procedure = Published(Replay(loaded, VisionProcessor.load(str(MODEL)), neurons.capture))

        def published() -> None:
            with torch.inference_mode():
                procedure.run(neurons.captions[:SAMPLED], settings.k)

        number = itertools.count()

        def both() -> None:
            store = path / f"store-{next(number)}"
            made = capture(
                str(MODEL), path / "pictures", store, generate=True, positions="generated", exemplars=0,
                max_documents=SAMPLED * 5,
            )  # fmt: skip
            find_multimodal(made, settings)

        published()
        cost = f"{procedure.steps / SAMPLED:.0f} passes per caption; {SAMPLED} captions × {n_captions // SAMPLED}"
        yield {
            f"actstore, {n_captions:,} captions, {len(neurons.nouns):,} nouns": Candidate(
                lambda: find_multimodal(Store(path / "store").capture(), settings)
            ),
            f"the answers generated and captured first; {SAMPLED * 5} captions × {n_captions // SAMPLED // 5}": Candidate(
                both, times=n_captions // SAMPLED // 5
            ),
            f"as published: {cost}": Candidate(published, times=n_captions // SAMPLED),
        }


TESTS = ("tests/engine/multimodal",)
ROWS = (
    Row(
        "multi-modal neurons of every noun, demo captioner, from a store, one thread",
        prepare,
        TESTS,
        repeats=3,
    ),
)
