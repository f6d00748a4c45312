"""Token ids that stand for no text: those that a tokenizer marks special, or, without one, those that a model's files name.

Everything else takes them from here, or from the `special` column of a store's vocabulary.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_ROLES: Final = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
"""Roles in which a token stands for no text even if it is the unknown token. Padding is none of them."""
CONFIGURED: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that stand for no text: the tokenizer's named ones and all that it marks special in the vocabulary.

    The unknown token, which stands for text outside the vocabulary, is not among them unless it has another role: GPT-2 uses
    its end-of-text token as the unknown one. Nor is the token that speech models write between words.
    """
    marked = {int(token) for token, item in _added_tokens(tokenizer).items() if getattr(item, "special", False)}
    roles = {getattr(tokenizer, role, None) for role in _ROLES}
    of_text = {tokenizer.unk_token_id, getattr(tokenizer, "word_delimiter_token_id", None)} - roles
    return frozenset(marked.union(int(token) for token in tokenizer.all_special_ids) - of_text)


def configured_special_ids(*configs: Any, roles: tuple[str, ...] = CONFIGURED) -> frozenset[int]:
    """The ids that a model's configurations name for begin of text, end of text and padding; None is no configuration."""
    parts = [c.get_text_config(decoder=True) if hasattr(c, "get_text_config") else c for c in configs]
    values = [getattr(config, role, None) for config in (*configs, *parts) for role in roles]
    ids = [value if isinstance(value, (list, tuple)) else [value] for value in values]
    return frozenset(token for group in ids for token in group if isinstance(token, int) and token >= 0)


def configs_of(model: PreTrainedModel) -> tuple[PreTrainedConfig, GenerationConfig | None]:
    """The configuration of a model in memory, and that of generating; None for a class that cannot generate."""
    return model.config, getattr(model, "generation_config", None)


def special_ids_of_files(name_or_path: str, *, trust_remote_code: bool = False) -> frozenset[int]:
    """The same for the config.json and, where there is one, the generation_config.json saved with a model."""
    from transformers import GenerationConfig

    from actstore.engine.models.checkpoints import load_config

    generation = None
    with suppress(OSError, ValueError, TypeError):
        generation = GenerationConfig.from_pretrained(name_or_path)
    return configured_special_ids(load_config(name_or_path, trust_remote_code=trust_remote_code), generation)


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, Any]:
    # The tokenizers of mistral-common keep no such list: they name all their special tokens.
    with suppress(NotImplementedError):
        return dict(tokenizer.added_tokens_decoder)
    return {}
