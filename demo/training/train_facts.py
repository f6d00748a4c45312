"""Trains the embedded fact model: a small Llama that answers multiple-choice questions about the facts in demo/data/facts.

    python demo/training/train_facts.py --out demo/models/fact-llama

A step sees multiple-choice prompts (new distractors, orders, phrasings and templates every time), the facts as statements
and as open questions, and exercises in giving an option's letter (fact_lessons.py). Two phrasings of every relation and one
template are never trained on; the log ends with the accuracy on them of the model as saved (float16), with the question
and, as a control, without it.

A run that was stopped resumes from its last state in build/: a step's batch depends on its number only.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from byte_level import BOS, PAD, train_byte_level
from fact_lessons import Example, draw_step
from fact_questions import BARE_TEMPLATES, LETTERS, TEMPLATES, Relation, evaluation_questions, fill, read_relations
from training import Schedule, Training, open_log, state_path, train
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

N_VOCAB, CONTEXT = 3072, 256


def train_tokenizer(relations: list[Relation]) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the training texts, in which nearly every answer and every " A" … " D" is one token."""
    texts = [f"\n{letter}. {letter}" for letter in LETTERS] * 1000
    texts += [template.format(question="", options="") for template in (*TEMPLATES, *BARE_TEMPLATES)] * 100
    for relation in relations:
        for subject, answer in relation.facts:
            texts += [f" {answer}"] * 100 + [f"{subject}", f" {subject}"] * 20
            told = [fill(p, subject, answer) for p in (*relation.statements, *relation.questions)]
            texts += told + [f" {text}" for text in told]
    return train_byte_level(texts, N_VOCAB, CONTEXT)


def build_model(n_vocab: int) -> LlamaForCausalLM:
    """The untrained model: 5 layers, width 128, 512 neurons per layer (2,560 in all)."""
    config = LlamaConfig(
        vocab_size=n_vocab, hidden_size=128, intermediate_size=512, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=BOS,
        eos_token_id=None, pad_token_id=PAD,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def backward(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> float:
    """Add the gradient of the examples' mean loss, each summed over its targets; returns the mean over targets of weight 1."""
    rows = []
    for example in examples:
        ids, weights = [BOS], [0.0]
        for text, weight in example:
            piece = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
            ids += piece
            weights += [weight] * len(piece)
        rows.append((ids, weights))
    ids = torch.full((len(rows), max(len(r) for r, _ in rows)), PAD)
    weights = torch.zeros(ids.shape)
    for i, (row, weight) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = torch.tensor(weight)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state  # the padding is at the end: causal is enough
        asked = weights[:, 1:] > 0
        logits = model.lm_head(hidden[asked])
    weight = weights[:, 1:][asked]
    losses = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][asked], reduction="none")
    ((losses * weight).sum() / len(rows)).backward()
    return float(losses.detach()[weight == 1].mean())


@torch.no_grad()
def choose_letters(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    """The most probable of the four letters after each prompt."""
    letters = torch.tensor([tokenizer.encode(f" {x}", add_special_tokens=False)[-1] for x in LETTERS])
    rows = sorted(enumerate(e.ids for e in tokenizer.backend_tokenizer.encode_batch(prompts)), key=lambda r: len(r[1]))
    answers = [""] * len(prompts)
    model.eval()
    for start in range(0, len(rows), 64):
        batch = rows[start : start + 64]
        ids = torch.full((len(batch), len(batch[-1][1])), PAD)
        for i, (_, row) in enumerate(batch):
            ids[i, : len(row)] = torch.tensor(row)
        last = torch.tensor([len(row) - 1 for _, row in batch])
        hidden = model.model(input_ids=ids).last_hidden_state[torch.arange(len(batch)), last]
        best = model.lm_head(hidden).argmax(-1)
        for (row, _), token in zip(batch, best.tolist(), strict=True):
            answers[row] = LETTERS[int((letters == token).nonzero()[0])] if token in letters else "?"
    model.train()
    return answers


def evaluate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: dict[str, Any], every: int = 1
) -> dict[str, Any]:
    """Accuracy in total, by domain and by template; the held-out template is not part of the total."""
    asked: list[tuple[str, str, str, str]] = []  # prompt, letter, domain, template
    for i, question in enumerate(questions.values()):
        for j, (prompt, letter) in enumerate(zip(question["sentences"], question["obj_label"], strict=True)):
            if (i + j) % every == 0:
                asked.append((prompt, letter, question["relation_name"], f"template {j + 1}"))
        if i % every == 0:
            asked.append((question["held_out_sentence"], question["held_out_label"], "", "held-out template"))
    right: dict[str, list[bool]] = defaultdict(list)
    for (_, letter, domain, template), said in zip(
        asked, choose_letters(model, tokenizer, [a[0] for a in asked]), strict=True
    ):
        right[template].append(letter == said)
        if domain:
            right[domain].append(letter == said)
            right["total"].append(letter == said)
    return {name: round(sum(r) / len(r), 4) for name, r in sorted(right.items())} | {"n_prompts": len(asked)}


def without_the_question(questions: dict[str, Any]) -> dict[str, Any]:
    """The same prompts without the question: the accuracy that the options alone allow."""
    return {
        key: row
        | {"sentences": [prompt.replace(row["question"], "") for prompt in row["sentences"]]}
        | {"held_out_sentence": row["held_out_sentence"].replace(row["question"], "")}
        for key, row in questions.items()
    }


def main() -> None:
    """Train, save as float16 safetensors with the questions, evaluate the saved model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=1500, help="number of training steps")
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate")
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    relations = read_relations(Path(__file__).parents[1] / "data" / "facts")
    tokenizer = train_tokenizer(relations)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(arguments.out)
    questions = evaluation_questions(relations, seed=1)
    (arguments.out / "questions.json").write_text(
        json.dumps(questions, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    model = build_model(len(tokenizer))
    n_facts = sum(len(r.facts) for r in relations)
    with open_log(arguments.out, model, vocabulary=len(tokenizer), facts=n_facts, steps=arguments.steps) as log:
        train(
            Training(model, Schedule(arguments.rate, arguments.steps, 60, arguments.steps * 5 // 6)),
            state_path(arguments.out),
            lambda step: {kind: backward(model, tokenizer, told) for kind, told in draw_step(step, relations).items()},
            lambda: evaluate(model, tokenizer, questions, every=6),
            log,
        )
        model.half().save_pretrained(arguments.out)
        saved = LlamaForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)
        log({"saved_model": evaluate(saved, tokenizer, questions)})
        log({"saved_model_without_the_question": evaluate(saved, tokenizer, without_the_question(questions))})


if __name__ == "__main__":
    main()
