"""Families: which transformers class a configuration stands for, what it is fed, and how it is loaded; errors in one sentence.

Knows the Auto classes, checkpoint configurations and input names of the transformers library; nothing about where neurons are.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from actstore.store.errors import ModelError

KINDS = ("causal", "encoder", "encoder-decoder", "vision")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len", "max_sequence_length")


def load_config(name: str, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration of a model folder or Hub id.

    Raises `ModelError` where there is no such folder or id, the Hub cannot be reached, or transformers does not know the type.
    """
    if not Path(name).is_dir() and not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"expected a model folder or a Hub id, and there is no folder {name!r}: give a folder that holds config.json, or an id"
            " such as 'openai-community/gpt2'"
        )
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_explain(name, error)) from error


def _explain(name: str, error: Exception) -> str:
    """What went wrong with a name, as one sentence."""
    causes = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 10:
        causes.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    text = " ".join(causes)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            return f"expected a model in the folder {name!r}, and it holds no config.json: give the folder that save_pretrained wrote"
        if "trust_remote_code" in text:
            return f"the model in {name!r} brings its own code: read that code, then pass trust_remote_code=True to run it"
        first = str(error).strip().splitlines()[0]
        return f"the config.json in {name!r} cannot be read by transformers {transformers.__version__}: {first}"
    if "RepositoryNotFound" in text or "404" in text or "401" in text or "is not a valid model identifier" in text:
        return f"expected a model folder or a Hub id, and found neither at {name!r}: there is no such folder, and the Hub has no such model open to you"
    if "trust_remote_code" in text:
        return f"the model {name!r} brings its own code: read that code, then pass trust_remote_code=True to run it"
    return f"there is no folder {name!r}, and the Hugging Face Hub cannot be reached to look for a model of that name: check the network, or download it first"


def model_class(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """The class that a configuration's checkpoint was saved from, else the one with a language-model head, else the bare one.

    Raises `ModelError` where transformers has no class for the type.
    """
    for name in config.architectures or ():
        named = getattr(transformers, name, None)
        if inspect.isclass(named) and issubclass(named, PreTrainedModel):
            return named
    for table in _tables(config):
        entry = table.get(config.model_type)
        for name in (entry,) if isinstance(entry, str) else tuple(entry or ()):
            named = getattr(transformers, name, None)
            if inspect.isclass(named) and issubclass(named, PreTrainedModel):
                return named
    raise ModelError(f"transformers {transformers.__version__} has no model class for the type {config.model_type!r}")


def _tables(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """The library's tables of classes by type, the one that fits a configuration best first."""
    text: list[Mapping[str, Any]] = [auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if getattr(config, "is_decoder", False):
        text.reverse()
    if config.is_encoder_decoder:
        text = [auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, *text]
    return [*text, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES]


def kind_of(model: PreTrainedModel) -> str:
    """One of `KINDS`: how a model reads its input."""
    config = model.config
    if config.is_encoder_decoder:
        return "encoder-decoder"
    if "input_ids" not in _accepted(model):
        return "vision" if model.main_input_name == "pixel_values" else "encoder"
    causal = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "ForCausalLM" in type(model).__name__
    bidirectional = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    generative = config.model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return "causal" if (causal or generative) and not bidirectional else "encoder"


def context_of(model: PreTrainedModel) -> int | None:
    """The most positions a window may have; None where the configuration sets no bound."""
    config = model.config.get_text_config()
    for name in _POSITIONS:
        positions = getattr(config, name, None)
        if isinstance(positions, int) and positions > 0:
            table = next((m for p, m in model.named_modules() if p.endswith("embeddings.position_embeddings")), None)
            # RoBERTa and its kin number positions from the padding id on, so their first two rows are never used
            offset = (table.padding_idx or 0) + 1 if getattr(table, "padding_idx", None) is not None else 0
            return positions - offset
    return None


def vocabulary_of(model: PreTrainedModel) -> int | None:
    """The number of token ids; None for a model that reads no text."""
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) and "input_ids" in _accepted(model) | _accepted(headless(model)) else None


def headless(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head: unembedding what nobody reads is wasted work."""
    base = model.base_model
    return base if base is not model and model.main_input_name in _accepted(base) else model


def _accepted(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def arguments_for(
    model: PreTrainedModel, input_ids: Tensor | None, attention_mask: Tensor | None, extra: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """What a forward pass is called with.

    An encoder-decoder gets the window twice, as the encoder's input and as the decoder's, so that row t of every layer is the
    token read at position t; where the encoder hears or sees (`extra`), the window goes to the decoder only.
    """
    accepted = _accepted(model)
    given: dict[str, Any] = dict(extra or {})
    if input_ids is not None:
        encoder_takes_ids = "input_ids" in accepted
        if encoder_takes_ids:
            given.setdefault("input_ids", input_ids)
        if model.config.is_encoder_decoder and "decoder_input_ids" in accepted:
            given.setdefault("decoder_input_ids", input_ids)
        if attention_mask is not None and encoder_takes_ids:
            given["attention_mask"] = attention_mask
        if attention_mask is not None and "decoder_input_ids" in given and "decoder_attention_mask" in accepted:
            given["decoder_attention_mask"] = attention_mask
    if "use_cache" in accepted:
        given["use_cache"] = False
    return given


def example_ids(model: PreTrainedModel) -> Tensor:
    """A few token ids [window, position]; as many windows as a music model reads codebooks at once."""
    count = getattr(model.config, "num_codebooks", 2)
    return torch.arange(8 * count).view(count, 8) % 7 + 4


def example_inputs(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Token ids and further inputs of the smallest kind a model runs on, for a walk without weights."""
    accepted = _accepted(model)
    extra: dict[str, Tensor] = {}
    required = {
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is inspect.Parameter.empty or name == model.main_input_name
    }
    if "pixel_values" in required or ("pixel_values" in accepted and model.config.model_type in _DUAL):
        vision = getattr(model.config, "vision_config", model.config)
        size = getattr(vision, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        extra["pixel_values"] = torch.zeros(len(ids), getattr(vision, "num_channels", 3), height, width)
    if "input_features" in required:
        frames = 2 * getattr(model.config, "max_source_positions", 1500)
        extra["input_features"] = torch.zeros(len(ids), getattr(model.config, "num_mel_bins", 80), frames)
    takes_ids = "input_ids" in accepted or "decoder_input_ids" in accepted
    return (ids if takes_ids else None), extra


_DUAL = frozenset(auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES)
"""Types with a text and an image tower that are called together (CLIP and its kin)."""


def run_experts_eagerly(model: nn.Module) -> None:
    """Let every mixture run its experts one by one, in the library's own reference form, where their activations can be seen."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and config._experts_implementation != "eager":
            config._experts_implementation = "eager"


def build_weightless(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model on the meta device: its modules and shapes in float32, without memory."""
    build: Callable[..., PreTrainedModel] = kind._from_config
    try:
        with torch.device("meta"):
            model = build(config, dtype=torch.float32)
    except (ImportError, ValueError, TypeError, AttributeError, KeyError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__).strip()
        raise ModelError(f"{kind.__name__} cannot be built from its configuration: {first}") from error
    run_experts_eagerly(model)
    return model.eval()


def stack_of(model: PreTrainedModel, module: str) -> str:
    """The stack a block belongs to: "vision", "encoder" or "decoder", by the sub-model that holds it."""
    path = module
    while path:
        path = path.rpartition(".")[0]
        part = model.get_submodule(path)
        if isinstance(part, PreTrainedModel) and part.main_input_name == "pixel_values" and "input_ids" not in _accepted(part):
            return "vision"
    if not model.config.is_encoder_decoder:
        return "decoder" if kind_of(model) == "causal" else "vision" if kind_of(model) == "vision" else "encoder"
    return "encoder" if "encoder" in module.split(".") else "decoder"


def part_for(model: PreTrainedModel, arguments: Mapping[str, Any]) -> nn.Module:
    """The sub-model that runs on the given inputs alone: one tower of a dual encoder, or the whole model."""
    if model.config.model_type not in _DUAL or {"input_ids", "pixel_values"} <= arguments.keys():
        return model
    main = "input_ids" if "input_ids" in arguments else "pixel_values"
    towers = (part for part in model.children() if isinstance(part, PreTrainedModel) and main in _accepted(part))
    return next(towers, model)


def dtype_of(model: PreTrainedModel) -> torch.dtype:
    """The dtype a model's checkpoint asks for; what its weights are in once it is loaded."""
    if model.device.type == "meta":
        stated = model.config.dtype
        return stated if isinstance(stated, torch.dtype) else torch.float32
    return model.dtype


def load_weights(
    kind: type[PreTrainedModel], name: str, *, dtype: str, device: torch.device, trust_remote_code: bool
) -> PreTrainedModel:
    """The model with its weights on a device. Raises `ModelError` where they cannot be read or some are missing."""
    try:
        model, report = kind.from_pretrained(
            name,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"the weights of {name!r} cannot be loaded as {kind.__name__} from safetensors: {first}") from error
    blocks = [key for key in report["missing_keys"] if re.search(r"\.\d+\.", key)]
    if blocks:
        raise ModelError(
            f"expected {name!r} to hold every weight of {kind.__name__}, and {len(blocks)} are missing, {blocks[0]} first: the"
            " checkpoint is incomplete or belongs to another architecture"
        )
    if dtype == "auto" and device.type == "cpu" and model.dtype == torch.float16:
        model = model.float()
    return model.to(device)
