"""Processors: a model's image processor and tokenizer in one, loaded without torchvision."""

from __future__ import annotations

from typing import Any

from actstore.engine.models.checkpoints import first_line
from actstore.store.errors import InvalidInputError


def load_processor(name: str, config: Any, *, trust_remote_code: bool = False) -> Any:
    """The processor of a model, with the image processor based on PIL whatever else is installed.

    Raises `InvalidInputError` where the model has no usable processor, naming the files that would hold it.
    """
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        kind = _reading_images(PROCESSOR_MAPPING[type(config)])
        settings, _ = kind.get_processor_dict(name)
        parts = [_part(name, attribute, trust_remote_code) for attribute in kind.get_attributes()]
        return kind.from_args_and_dict(parts, settings)
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"expected {name!r} to hold a processor for images (preprocessor_config.json or processor_config.json, next to the"
            f" tokenizer's files), and none can be used: {first_line(error)}"
        ) from error


def _reading_images(kind: Any) -> Any:
    """A processor's class that can be constructed without the packages that videos need: torchvision, num2words."""
    import transformers

    if kind.__name__ == "SmolVLMProcessor":
        return transformers.Idefics3Processor  # the same for images
    if "video_processor" not in kind.get_attributes():
        return kind

    def accept(_self: Any, _name: str, part: object) -> type:
        return type(part)

    # The check of a part's class looks up the classes of all video processors, which cannot be imported.
    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": accept})


def _part(name: str, attribute: str, trust_remote_code: bool) -> Any:
    """One of the parts that a processor's class takes; None for videos."""
    from transformers import AutoImageProcessor, AutoTokenizer

    if attribute == "image_processor":
        load: Any = AutoImageProcessor.from_pretrained
        return load(name, backend="pil", trust_remote_code=trust_remote_code)
    if attribute == "video_processor":
        return None
    subfolder = {} if attribute == "tokenizer" else {"subfolder": attribute}
    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **subfolder)
