"""Trains the embedded protein model: a small ESM that predicts masked residues of drawn protein families (protein_families.py).

    python demo/training/train_proteins.py --out demo/models/protein-esm

Every step sees new sequences of all families, of which 15 % of the residues are masked as ESM-2's were: 80 % by the mask, 10 %
by a random residue, 10 % left as they are. The log ends with the accuracy of the model as saved (float16) on sequences that
it was never trained on, one residue masked at a time: conserved residues by family, and residues of the linkers.

A run that was stopped resumes from its last state in build/: a step's batch depends on its number only.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from protein_families import FREQUENCIES, draw_protein, draw_questions, families
from training import Schedule, Training, open_log, state_path, train
from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

if TYPE_CHECKING:
    from protein_families import Protein

PIECES: Final = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<null_1>", "<mask>")
"""The vocabulary of ESM-2."""
CLS, PAD, EOS, MASK = 0, 1, 2, 32
PER_FAMILY: Final = 3
"""Sequences of each family in a step."""
CONTEXT: Final = 96


def build_model() -> EsmForMaskedLM:
    """The untrained model: 4 layers, width 64, 256 neurons per layer (1,024 in all)."""
    config = EsmConfig(
        vocab_size=len(PIECES), mask_token_id=MASK, pad_token_id=PAD, hidden_size=64, intermediate_size=256,
        num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=CONTEXT, token_dropout=True,
        position_embedding_type="rotary", emb_layer_norm_before=False, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return EsmForMaskedLM(config)


def encode(sequence: str) -> list[int]:
    """The ids of a sequence between those of its beginning and its end."""
    return [CLS, *(PIECES.index(residue) for residue in sequence), EOS]


def padded(rows: list[list[int]]) -> torch.Tensor:
    """The rows as one tensor [row, position]."""
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids


def draw_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of a step [row, position], masked, and the ids to predict there, -100 elsewhere."""
    rng = random.Random(f"train {step}")
    ids = padded([encode(draw_protein(family, rng).sequence) for family in families() for _ in range(PER_FAMILY)])
    generator = torch.Generator().manual_seed(step)
    drawn, kind = torch.rand(2, *ids.shape, generator=generator)
    masked = (drawn < 0.15) & (ids > EOS)
    targets = torch.where(masked, ids, -100)
    others = torch.tensor([PIECES.index(residue) for residue in FREQUENCIES])
    others = others[torch.randint(len(others), ids.shape, generator=generator)]
    ids = torch.where(masked & (kind < 0.8), MASK, torch.where(masked & (kind >= 0.9), others, ids))
    return ids, targets


def add_gradients(model: EsmForMaskedLM, step: int) -> dict[str, float]:
    """Add the gradient of a step's mean loss over masked residues, which is returned."""
    ids, targets = draw_batch(step)
    logits = model(
        input_ids=ids, attention_mask=(ids != PAD).long()
    ).logits  # in float32: products this small gain nothing
    loss = torch.nn.functional.cross_entropy(logits[targets >= 0].float(), targets[targets >= 0])
    loss.backward()
    return {"masked": float(loss.detach())}


@torch.no_grad()
def predict(model: EsmForMaskedLM, protein: Protein, positions: list[int]) -> list[bool]:
    """Whether the model is right about each position of a protein, counted from 1, where that alone is masked."""
    ids = torch.tensor([encode(protein.sequence)]).repeat(len(positions), 1)
    rows, at = torch.arange(len(positions)), torch.tensor(positions)
    targets = ids[rows, at]
    ids[rows, at] = MASK
    right: list[bool] = (model(input_ids=ids).logits[rows, at].argmax(-1) == targets).tolist()
    return right


def evaluate(model: EsmForMaskedLM, per_family: int = 20) -> dict[str, float]:
    """Accuracy on new sequences: conserved residues by family and over all, and all other residues."""
    model.eval()
    rng, right = random.Random("held out"), defaultdict(list)
    for family in families():
        for _ in range(per_family):
            protein = draw_protein(family, rng)
            found = predict(model, protein, [*protein.conserved])
            right[family.name] += found
            right["conserved"] += found
            others = [at for at in range(2, len(protein.sequence) + 1) if at not in protein.conserved]
            right["others"] += predict(model, protein, others)
    model.train()
    return {name: round(sum(values) / len(values), 4) for name, values in right.items()}


def save_tokenizer(folder: Path) -> None:
    """ESM's tokenizer, one token per residue."""
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    EsmTokenizer(str(folder / "vocab.txt"), model_max_length=CONTEXT).save_pretrained(folder)


def save_questions(folder: Path) -> None:
    """Rows for `actstore attribute`: two sequences of each family, with two masked residues each."""
    rows = draw_questions(2, 2, "questions")
    (folder / "proteins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Train, save as float16 safetensors, evaluate the saved model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=2000, help="number of training steps")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(arguments.out)
    save_questions(arguments.out)
    model = build_model()
    with open_log(arguments.out, model, families=len(families()), steps=arguments.steps) as log:
        train(
            Training(model, Schedule(arguments.rate, arguments.steps, 100, arguments.steps * 2 // 3)),
            state_path(arguments.out),
            lambda step: add_gradients(model, step),
            lambda: evaluate(model, per_family=3),
            log,
        )
        model.half().save_pretrained(arguments.out)
        log({"saved_model": evaluate(EsmForMaskedLM.from_pretrained(arguments.out, dtype=torch.float32))})


if __name__ == "__main__":
    main()
