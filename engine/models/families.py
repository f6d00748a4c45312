"""Families: which transformers class a configuration stands for, how that reads its input, and with what it is called.

The one module, with `vision`, that knows the Auto classes, configuration fields and input names of the transformers library.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto import modeling_auto as auto

from actstore.engine.models.checkpoints import first_line
from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KINDS = ("causal", "encoder", "encoder-decoder", "vision")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len", "max_sequence_length")


TOKEN_POSITIONS: dict[str, Literal["first", "last"]] = {
    "cpmant": "last",  # positions of the prompt come before those of the tokens
    "prophetnet": "first",  # predicting streams come after the main one
    # long windows are padded at the end to whole attention blocks
    **dict.fromkeys(("big_bird", "bigbird_pegasus", "led", "longformer", "reformer"), "first"),
}
"""Model type whose layers hold more positions than a window has tokens → which of the positions are the tokens'."""


def model_class(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """The class that a configuration's checkpoint was saved from, else the one with a language-model head, else the bare one.

    Raises `ModelError` where transformers has no class for the type.
    """
    remote_classes = getattr(config, "auto_map", None) or {}
    for auto_name in ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModel"):
        if trust_remote_code and auto_name in remote_classes:
            try:
                remote: type[PreTrainedModel] = get_class_from_dynamic_module(
                    remote_classes[auto_name], config._name_or_path
                )
            except Warning:  # raised only where the user turned warnings into errors
                raise
            except Exception as error:  # a model's own code may raise anything
                raise ModelError(
                    f"the code of {config._name_or_path!r}, {remote_classes[auto_name]}, cannot be run: {first_line(error)}"
                ) from error
            return remote
    entries = [config.architectures, *(table.get(config.model_type) for table in _tables(config))]
    for entry in entries:
        for name in (entry,) if isinstance(entry, str) else entry or ():
            candidate = getattr(transformers, name, None)
            if inspect.isclass(candidate) and issubclass(candidate, PreTrainedModel):
                return candidate
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
    masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    bidirectional = masked and not getattr(config, "is_decoder", False)
    generative = config.model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return "causal" if (causal or generative) and not bidirectional else "encoder"


def context_of(model: PreTrainedModel) -> int | None:
    """The maximum number of positions in a window; None where the configuration sets no bound."""
    config = model.config.get_text_config()
    for name in _POSITIONS:
        positions = getattr(config, name, None)
        if isinstance(positions, int) and positions > 0:
            table = next((m for p, m in model.named_modules() if p.endswith("embeddings.position_embeddings")), None)
            # RoBERTa and its relatives number positions from the padding id on, so their first two rows are never used
            padding = getattr(table, "padding_idx", None)
            return positions if padding is None else positions - padding - 1
    return None


def vocabulary_of(model: PreTrainedModel) -> int | None:
    """The number of token ids; None for a model that reads no text."""
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) and "input_ids" in _accepted(model) | _accepted(headless(model)) else None


def unembedding_of(model: PreTrainedModel, d_model: int) -> torch.Tensor | None:
    """The unembedding matrix [vocabulary, d_model]; None where the model has no head, or one of another width."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = getattr(head, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or weight.shape[1] != d_model:
        return None
    return weight.detach()


def headless(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head: the unembedding is wasted work where nothing reads the logits."""
    base = model.base_model
    return base if isinstance(base, PreTrainedModel) and model.main_input_name in _accepted(base) else model


def _accepted(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def arguments_for(
    model: PreTrainedModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    extra: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """The keyword arguments of a forward pass.

    An encoder-decoder gets the window twice, as the encoder's input and as the decoder's, so that row t of every layer is the
    token read at position t; where the encoder reads audio or images (`extra`), the window goes to the decoder only.
    """
    accepted = _accepted(model)
    arguments: dict[str, Any] = dict(extra or {})
    if input_ids is not None:
        encoder_takes_ids = "input_ids" in accepted
        if encoder_takes_ids:
            arguments.setdefault("input_ids", input_ids)
        if model.config.is_encoder_decoder and "decoder_input_ids" in accepted:
            arguments.setdefault("decoder_input_ids", input_ids)
        if attention_mask is not None and encoder_takes_ids:
            arguments["attention_mask"] = attention_mask
        if attention_mask is not None and "decoder_input_ids" in arguments and "decoder_attention_mask" in accepted:
            arguments["decoder_attention_mask"] = attention_mask
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    return arguments


def example_ids(model: PreTrainedModel) -> Tensor:
    """A few token ids [window, position]: as many windows as a music model reads codebooks at once, else two."""
    count = getattr(model.config, "num_codebooks", 2)
    return torch.arange(8 * count).view(count, 8) % 7 + 4


def example_inputs(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The smallest token ids and further inputs that a model runs on, for a walk without weights."""
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
"""Types with a text and an image tower that are called together (CLIP and its relatives)."""


def run_experts_eagerly(model: nn.Module) -> None:
    """Make every mixture run its experts one by one, in the library's reference form, where their activations can be read."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and config._experts_implementation != "eager":
            config._experts_implementation = "eager"


def build_weightless(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model on the meta device: its modules and shapes in float32, without memory for the weights."""
    build: Callable[..., PreTrainedModel] = kind._from_config
    try:
        with torch.device("meta"):
            model = build(copy.deepcopy(config), dtype=torch.float32)
    except (ImportError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(f"{kind.__name__} cannot be built from its configuration: {first_line(error)}") from error
    run_experts_eagerly(model)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def stack_of(model: PreTrainedModel, module: str, *, is_between: bool = False) -> str:
    """The stack a block belongs to: "vision", "projector", "encoder" or "decoder", by the sub-models that hold it.

    In a generating model with a vision tower, modules that are in neither the tower nor the language model are the projector;
    so is a block that `is_between` two stacks.
    """
    path, above = module, []
    while path:
        path = path.rpartition(".")[0]
        parent = model.get_submodule(path)
        above += [parent] if isinstance(parent, PreTrainedModel) else []
    tower = getattr(model.config, "vision_config", None)
    in_vision = any(
        (tower is not None and type(parent.config) is type(tower))
        or (parent.main_input_name == "pixel_values" and "input_ids" not in _accepted(parent))
        for parent in above
    )
    kind, text = kind_of(model), model.config.get_text_config()
    if kind == "causal" and tower is not None and text is not model.config:
        in_text = any(type(parent.config) is type(text) for parent in above)
        if is_between or not (in_vision or in_text):
            return "projector"
    if in_vision:
        return "vision"
    if model.config.is_encoder_decoder:
        return "encoder" if "encoder" in module.split(".") else "decoder"
    return "decoder" if kind == "causal" else "encoder"


def sub_model_for(model: PreTrainedModel, arguments: Mapping[str, Any]) -> nn.Module:
    """The sub-model that runs on these arguments alone: one tower of a dual encoder, or the whole model."""
    if model.config.model_type not in _DUAL or {"input_ids", "pixel_values"} <= arguments.keys():
        return model
    main = "input_ids" if "input_ids" in arguments else "pixel_values"
    towers = (part for part in model.children() if isinstance(part, PreTrainedModel) and main in _accepted(part))
    return next(towers, model)


def dtype_of(config: PreTrainedConfig) -> torch.dtype:
    """The dtype of a configuration's checkpoint; float32 where it does not say."""
    stated = config.dtype or getattr(config.get_text_config(), "dtype", None)
    return stated if isinstance(stated, torch.dtype) else torch.float32
