"""The demo's captioner before it is trained: its tokenizer, processor and model, and the form of its prompts."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from picture_words import CAPTIONS, FACTS, PHRASINGS, questions
from scenes import SIDE, make_scene
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

if TYPE_CHECKING:
    from pathlib import Path

BOS, EOS, PAD, UNK, IMAGE = range(5)
SPECIAL: Final = ("<s>", "</s>", "<pad>", "<unk>", "<image>")
PATCH: Final = 8
N_PATCHES: Final = (SIDE // PATCH) ** 2
CONTEXT: Final = 256
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'].upper() }}:"
    "{% if message['content'] is string %} {{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %} <image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ '' if message['content'][0]['type'] == 'image' else ' ' }}{{ part['text'] }}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def prompt_text(prompt: str, with_image: bool = True) -> str:
    """The prompt in the form in which the model was trained."""
    return f"USER: {'<image>' + chr(10) if with_image else ''}{prompt} ASSISTANT:"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: " red" and "red" are both the token "▁red", as in LLaVA's own vocabulary."""
    texts = {"USER: ASSISTANT: An image of an image", *CAPTIONS, *itertools.chain(*FACTS.items())}
    for i in range(4000):
        scene = make_scene(0, i, held_out=i % 4 == 0)
        texts.update(phrase(scene) for phrase in PHRASINGS.values())
        texts.update(itertools.chain(*(wordings for wordings, _ in questions(scene, np.random.default_rng(i)))))
    words = sorted({f"▁{word}" for text in texts for word in re.findall(r"[A-Za-z]+", text)})
    vocabulary = [*SPECIAL, "▁", *sorted({mark for text in texts for mark in re.findall(r"[^\w\s]", text)}), *words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Split(Regex(r"[^\w▁]"), "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(t, lstrip=t == "<image>", special=True) for t in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left", model_max_length=CONTEXT,
    )  # fmt: skip


def make_processor() -> LlavaProcessor:
    """The processor: pictures to [-1, 1], no resizing of those that are 64 pixels wide and high."""
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        pictures, make_tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def build_model(n_vocab: int) -> LlavaForConditionalGeneration:
    """The untrained model, of width 128: a vision tower of 3 layers, a language model of 4 with 384 neurons each (1,536)."""
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE,
        patch_size=PATCH, projection_dim=128,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=n_vocab, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=False, bos_token_id=BOS,
        eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=N_PATCHES,
        vision_feature_layer=-1, vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config.bos_token_id, model.generation_config.pad_token_id = BOS, PAD
    model.generation_config.eos_token_id, model.generation_config.max_new_tokens = EOS, 24
    return model


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Save the model as float16 with its processor and tokenizer, as plain transformers loads them; `model` stays float32."""
    processor.save_pretrained(folder)
    half_model = LlavaForConditionalGeneration(model.config)
    half_model.load_state_dict(model.state_dict())
    half_model.generation_config = model.generation_config
    half_model.half().save_pretrained(folder)
    model.config.dtype = torch.float32
