"""Tiny vision-language models of every family, with processors, saved as model folders. Not a test module."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tiny import scatter_weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["a red circle above a small blue square", "what is in the picture?", "describe it in a few words"] * 4
D_TEXT, D_VISION, NEURONS, VISION_NEURONS = 16, 24, 40, 36
TEXT = {
    "hidden_size": D_TEXT, "intermediate_size": NEURONS, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 1024,
}  # fmt: skip
VISION = {
    "hidden_size": D_VISION, "intermediate_size": VISION_NEURONS, "num_hidden_layers": 3, "num_attention_heads": 2,
}  # fmt: skip


def make_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with further special tokens, some of them by name (`image_token="<image>"`)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = list(dict.fromkeys(["<s>", "</s>", "<pad>", *special, *named.values()]))
    trainer = trainers.BpeTrainer(
        vocab_size=320 + len(specials),
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[token for token in special if token not in named.values()],
        extra_special_tokens=named,
    )


SIDE, PATCH = 32, 8
SQUARE = {"height": SIDE, "width": SIDE}
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32]]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Parts = tuple[Any, Any, dict[str, Any], Any]
"""Tokenizer, image processor, further settings of the processor, and model."""


def _text(kind: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> dict[str, Any]:
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return TEXT | ids | {"model_type": kind, "vocab_size": len(tokenizer)} | changes


def _vision(kind: str, **changes: Any) -> dict[str, Any]:
    return VISION | {"model_type": kind, "image_size": SIDE, "patch_size": PATCH} | changes


def llava() -> Parts:
    tokenizer = make_tokenizer([], image_token="<image>")
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    config = transformers.LlavaConfig(
        vision_config=_vision("clip_vision_model"),
        text_config=_text("llama", tokenizer),
        image_token_index=tokenizer.image_token_id,
    )
    settings = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return tokenizer, images, settings, transformers.LlavaForConditionalGeneration(config)


def llava_next() -> Parts:
    tokenizer = make_tokenizer([], image_token="<image>")
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
    )
    config = transformers.LlavaNextConfig(
        vision_config=_vision("clip_vision_model"),
        text_config=_text("llama", tokenizer),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=PINPOINTS,
    )
    settings = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return tokenizer, images, settings, transformers.LlavaNextForConditionalGeneration(config)


def llava_onevision(most: int = 9) -> Parts:
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"], image_token="<image>", video_token="<video>")
    # No whole number of patches: 36 pixels hold 4, and 4 pixels of each tile are in none.
    pinpoints = [[height // SIDE * 36, width // SIDE * 36] for height, width in PINPOINTS]
    images = transformers.LlavaOnevisionImageProcessorPil(
        size={"height": 36, "width": 36}, image_grid_pinpoints=pinpoints
    )
    config = transformers.LlavaOnevisionConfig(
        vision_config=_vision("siglip_vision_model", vision_use_head=False, image_size=36),
        text_config=_text("qwen2", tokenizer),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=f"anyres_max_{most}",
        vision_feature_select_strategy="full",
    )
    settings = {
        "num_image_tokens": (SIDE // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": f"anyres_max_{most}",
        "chat_template": CHATML.replace("IMAGE", "<image>"),
    }
    return tokenizer, images, settings, transformers.LlavaOnevisionForConditionalGeneration(config)


def _qwen(kind: str, vision: dict[str, Any]) -> Parts:
    names = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = make_tokenizer(names, image_token="<|image_pad|>", video_token="<|video_pad|>")
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 4096}
    )
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    start, end = tokenizer.convert_tokens_to_ids(names[2:])
    config = getattr(transformers, f"{kind}Config")(
        vision_config={"patch_size": 4, "depth": 3, "num_heads": 2, "in_channels": 3} | vision,
        text_config=_text(
            f"{kind.lower().replace('5', '_5_').replace('2vl', '2_vl')}_text", tokenizer, rope_parameters=rope
        ),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    slot = "<|vision_start|><|image_pad|><|vision_end|>"
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return tokenizer, images, {"chat_template": CHATML.replace("IMAGE", slot)}, model


def qwen2_vl() -> Parts:
    return _qwen("Qwen2VL", {"embed_dim": D_VISION, "hidden_size": D_TEXT, "mlp_ratio": 2})


def qwen2_5_vl() -> Parts:
    window = {"window_size": 16, "fullatt_block_indexes": [1], "out_hidden_size": D_TEXT}
    return _qwen("Qwen2_5_VL", {"hidden_size": D_VISION, "intermediate_size": VISION_NEURONS} | window)


def _blip(kind: str, text: str) -> Parts:
    tokenizer = make_tokenizer(["<image>"])
    images = transformers.BlipImageProcessorPil(size=SQUARE)
    queries = {"hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=_vision(""),
        qformer_config=queries | {"encoder_hidden_size": D_VISION, "vocab_size": len(tokenizer)},
        text_config=_text(text, tokenizer, ffn_dim=NEURONS, word_embed_proj_dim=D_TEXT),
        num_query_tokens=5,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return tokenizer, images, {"num_query_tokens": 5}, getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def instructblip() -> Parts:
    return _blip("InstructBlip", "llama")


def blip_2() -> Parts:
    return _blip("Blip2", "opt")


def _idefics(kind: str, text: str) -> Parts:
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    names = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *places]
    tokenizer = make_tokenizer(names, image_token="<image>")
    images = getattr(transformers, f"{kind}ImageProcessorPil")(
        size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
    )
    config = getattr(transformers, f"{kind}Config")(
        vision_config=_vision(f"{kind.lower()}_vision"),
        text_config=_text(text, tokenizer),
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
    )
    settings = {"image_seq_len": (SIDE // PATCH // 2) ** 2}
    return tokenizer, images, settings, getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def idefics3() -> Parts:
    return _idefics("Idefics3", "llama")


def smolvlm() -> Parts:
    return _idefics("SmolVLM", "llama")


def paligemma() -> Parts:
    tokenizer = make_tokenizer([], image_token="<image>")
    images = transformers.SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = (SIDE // PATCH) ** 2
    config = transformers.PaliGemmaConfig(
        vision_config=_vision("siglip_vision_model", vision_use_head=False, projection_dim=D_TEXT),
        text_config=_text("gemma", tokenizer, head_dim=8),
        projection_dim=D_TEXT,
        image_token_index=tokenizer.image_token_id,
    )
    return tokenizer, images, {}, transformers.PaliGemmaForConditionalGeneration(config)


def gemma3() -> Parts:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = make_tokenizer(["<start_of_turn>", "<end_of_turn>"], **named)
    images = transformers.Gemma3ImageProcessorPil(size=SQUARE)
    config = transformers.Gemma3Config(
        vision_config=_vision("siglip_vision_model", vision_use_head=False),
        text_config=_text("gemma3_text", tokenizer, head_dim=8, sliding_window=64),
        mm_tokens_per_image=(SIDE // PATCH // 2) ** 2,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    settings = {"image_seq_length": (SIDE // PATCH // 2) ** 2}
    return tokenizer, images, settings, transformers.Gemma3ForConditionalGeneration(config)


def internvl() -> Parts:
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"], **named, video_token="<video>")
    images = transformers.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=6)
    config = transformers.InternVLConfig(
        vision_config=_vision("internvl_vision", image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH]),
        text_config=_text("qwen2", tokenizer),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=(SIDE // PATCH // 2) ** 2,
    )
    settings = {
        "image_seq_length": (SIDE // PATCH // 2) ** 2,
        "chat_template": CHATML.replace("IMAGE", "<IMG_CONTEXT>"),
    }
    return tokenizer, images, settings, transformers.InternVLForConditionalGeneration(config)


def mllama() -> Parts:
    tokenizer = make_tokenizer(["<|python_tag|>"], image_token="<|image|>")
    images = transformers.MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4)
    config = transformers.MllamaConfig(
        vision_config={
            **{"image_size": SIDE, "patch_size": PATCH, "hidden_size": D_VISION, "intermediate_size": VISION_NEURONS},
            **{"num_hidden_layers": 3, "num_global_layers": 1, "attention_heads": 2},
            **{"intermediate_layers_indices": [0, 1], "vision_output_dim": 3 * D_VISION},
        },
        text_config=_text("mllama_text_model", tokenizer, cross_attention_layers=[1], num_hidden_layers=3),
        image_token_index=tokenizer.image_token_id,
    )
    return tokenizer, images, {}, transformers.MllamaForConditionalGeneration(config)


FAMILIES = {
    make.__name__: make
    for make in (llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, instructblip, blip_2, idefics3, smolvlm,
                 paligemma, gemma3, internvl, mllama)
}  # fmt: skip

PROCESSORS = {
    "llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision", "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL", "instructblip": "InstructBlip", "blip_2": "Blip2", "idefics3": "Idefics3",
    "smolvlm": "SmolVLM", "paligemma": "PaliGemma", "gemma3": "Gemma3", "internvl": "InternVL", "mllama": "Mllama",
}  # fmt: skip


def tiny_vision_model(family: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A tiny model of a family with its processor's files, as a Hub repository holds them; the folder."""
    torch.manual_seed(seed)
    tokenizer, images, settings, model = FAMILIES[family](**changes)
    scatter_weights(model, seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "gate" in name and value.dim() == 1 and value.numel() == 1:
                value.fill_(0.7)  # mllama's gates are shut at first
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    if family == "instructblip":
        make_tokenizer([]).save_pretrained(folder / "qformer_tokenizer")
    template = settings.pop("chat_template", None)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    named = {"processor_class": f"{PROCESSORS[family]}Processor"}
    (folder / "processor_config.json").write_text(json.dumps(named | settings), encoding="utf-8")
    return folder
