"""Tiny configurations of any model type of transformers: the library's defaults, shrunk by the names of their fields.

Special care a type needs is in `OVERRIDES`, one line each. Not a test module.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

D_MODEL, NEURONS, HEADS, EXPERTS, VOCABULARY, POSITIONS = 64, 48, 4, 4, 128, 64

_SIZES: tuple[tuple[str, int], ...] = (
    (r"qk_(rope|nope)_head_dim|rotary_dim|rotary_ndims", 8),
    (r".*vocab_size.*|.*_byte_group_vocab", VOCABULARY),  # BLT: half a million hashes of groups of bytes
    (
        r"(.*_)?hidden_size|hidden_size_(per_layer_input|global)|d_model|n_embd|n_embed|dim_model|embed_dim|embedding_size"
        r"|word_embed_proj_dim|emb_dim|embedding_dim|projection_size|model_dim|embed_size|width|lru_width|hidden_dim|projection_dim",
        D_MODEL,
    ),
    (r"num_key_value_heads|.*_key_value_heads|num_kv_heads|kv_heads|n_kv_heads", 2),
    (r"n_heads?|num_heads|.*attention_heads|.*_num_heads|.*_n_heads|linear_num_.*_heads|num_.*_heads", HEADS),
    (r"(.*_)?head_dim|d_kv|attention_head_size|kv_channels|mamba_d_head|mamba_headdim", 16),
    (
        r"(.*_)?intermediate_size|(.*_)?ffn_dim|n_inner|d_ff|dim_ff|ffn_hidden_size|dff|d_inner|inner_dim|mlp_hidden_size"
        r"|(.*_)?intermediate_dim|(.*_)?ffn_hidden_size",
        NEURONS,
    ),
    (r"(moe_)?num_experts|num_local_experts|n_routed_experts|n_experts|.*num_experts", EXPERTS),
    (r"moe_top_?k|moe_k|top_k_experts|.*experts_per_tok(en)?|top_k", 2),
    (r"n_groups?|topk_group|num_expert_group|.*_n_groups?|.*_topk_group|.*_ngroups", 1),
    (r".*(lora|low)_(rank|dim).*|laurel_rank", 16),
    (r".*sliding_window|(attention_)?window_size|attention_chunk_size|local_attention|index_topk|.*chunk_size", 8),
    (r"(mamba_)?d_state|(mamba_)?state_size|ssm_state_size", 8),
    (r"max_(position_embeddings|target_positions|source_positions|sequence_length|seq_len|seq_length)", POSITIONS),
    (r"n_positions|n_ctx|seq_length|original_max_position_embeddings", POSITIONS),
    (r"num_kv_shared_layers", 0),
    (r"first_k_dense_replace", 1),
    (r"image_size", 32),
    (r"patch_size", 8),
)
_DEPTH = re.compile(
    r"num_hidden_layers|num_layers|n_layers?|(num_)?(.*_)?(encoder|decoder)_layers|depth|.*_num_hidden_layers"
)
_DERIVED = {"model_type", "transformers_version", "architectures", "dtype", "id2label", "label2id", "num_labels"} | {
    "_name_or_path",
    "output_attentions",
}

_OMIT = object()
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
_FULL_AND_SLIDING = {
    kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": _FULL_AND_SLIDING},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {"head_dim": 16},
    "dinov2": {"out_features": _OMIT, "out_indices": _OMIT, "stage_names": _OMIT},
    "dory": {
        "num_hidden_layers": 3,
        "n_input_layers": 1,
        "n_recurrent_layers": 1,
        "n_output_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "dots1": {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note": {
        "text_config": {"head_dim": 16},
        "vision_config": {"adapter_in_dim": D_MODEL, "adapter_out_dim": D_MODEL},
        "audio_config": {"adapter_input_size": D_MODEL, "adapter_out_dim": D_MODEL},
    },
    "dots3_note_text": {"head_dim": 16},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 2},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 128},
    "granitemoehybrid": _MAMBA | {"num_local_experts": EXPERTS, "shared_intermediate_size": NEURONS},
    "hrm_text": {"num_layers_per_stack": _OMIT, "num_hidden_layers": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": EXPERTS, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 8, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "nllb-moe": {"num_experts": EXPERTS, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [32, 32], "axial_pos_shape": [8, 8]},
    "xlnet": {"d_head": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_hidden_layers": 6,
        "layers_block_type": ["linear_attention", "hybrid"] * 3,
    },
    "zamba2": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": _OMIT,
    },
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The smallest configuration of a type that still has every kind of layer the default has."""
    made = CONFIG_MAPPING[model_type]
    values = shrink(made().to_dict())
    _update(values, OVERRIDES.get(model_type, {}))
    return made(**values)


def _update(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, change in changes.items():
        if change is _OMIT:
            values.pop(key, None)
        elif isinstance(change, dict) and isinstance(values.get(key), dict):
            _update(values[key], change)
        else:
            values[key] = change


def shrink(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration's fields with every size made small; lists with an entry per layer keep one layer of each kind."""
    n_layers = next(
        (values[key] for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if key in values), None
    )
    lists = {key: value for key, value in values.items() if isinstance(value, list) and len(value) == n_layers}
    kinds = {tuple(str(value[i]) for value in lists.values()): i for i in reversed(range(n_layers or 0))}
    chosen = sorted(kinds.values())[:6] if lists else []
    chosen += [i for i in range(2) if i not in chosen][: max(0, 2 - len(chosen))]
    latent = "qk_rope_head_dim" in values
    small: dict[str, Any] = {}
    for key, value in values.items():
        if key in _DERIVED or (latent and key in {"head_dim", "qk_head_dim"}):
            continue
        if key in lists:
            small[key] = [value[i] for i in chosen]
        elif key == "per_layer_config" and isinstance(value, dict):
            entries = {int(layer): shrink(entry) for layer, entry in value.items()}
            small[key] = {place: entries[layer] for place, layer in enumerate(chosen) if layer in entries}
        elif isinstance(value, dict) and ("model_type" in value or key.endswith("_config")):
            small[key] = shrink(value) | ({"model_type": value["model_type"]} if "model_type" in value else {})
        elif key.endswith("_token_id") and isinstance(value, int):
            small[key] = min(value, 3)
        elif isinstance(value, int) and not isinstance(value, bool):
            small[key] = _shrink_size(key, value, len(chosen))
        else:
            small[key] = value
    if (latent or "kv_lora_rank" in values) and "num_key_value_heads" in small:
        small["num_key_value_heads"] = HEADS
    return small


def _shrink_size(key: str, value: int, depth: int) -> int:
    if _DEPTH.fullmatch(key):
        return min(value, depth)
    size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, key)), value)
    return min(size, value) if value > 0 else value


def scatter_weights(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The model with random weights large enough that every path through it matters: biases and gains too."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1 or name.endswith(("bias", "_b")):
                value.normal_(0, 0.1, generator=random)
            elif "norm" in name or "ln_" in name:
                value.add_(torch.randn(value.shape, generator=random), alpha=0.1)
        for name, table in model.named_buffers():
            if name.endswith("tid2eid"):  # DeepSeek V4 routes its first layers by a table from token to experts
                table.copy_((torch.arange(len(table))[:, None] + torch.arange(table.shape[1])) % EXPERTS)
    return model.eval()


def random_ids(n_windows: int = 2, n_positions: int = 12, seed: int = 0) -> torch.Tensor:
    """Token ids [window, position] above the special ones."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY - 4, (n_windows, n_positions), generator=random)
