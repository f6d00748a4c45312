"""Models in memory: the plain transformers model inside the caller's object, whose state is restored after use.

Takes a `PreTrainedModel`, one inside torch.compile, DataParallel, DistributedDataParallel or a pipeline. A model that would not
run as its weights say, or of which a part is not in the memory of this process, is refused.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeAlias

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from actstore.engine.models.adapters import refuse_attached_adapters
from actstore.engine.models.families import run_experts_eagerly
from actstore.engine.models.quantised import refuse_number_types
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import transformers

    ModelInput: TypeAlias = str | Path | nn.Module | transformers.Pipeline
    """A model as callers pass it: a Hub id, a folder, or a transformers model in memory."""


def plain_model(given: object) -> PreTrainedModel:
    """The transformers model that `given` is or wraps.

    `InvalidInputError` for any other object; `ModelError` where the model runs an adapter, is quantised or in float64, or is
    only partly in the memory of one device.
    """
    model = _unwrap(given)
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"Expected a model's name, its folder, or a transformers model in memory, found {type(given).__name__}."
        )
    refuse_attached_adapters(model)
    if not isinstance(model, PreTrainedModel):
        raise InvalidInputError(
            f"Expected a transformers.PreTrainedModel, found {type(model).__name__}, a torch module of another kind. Give "
            "the transformers model that it holds, if it does."
        )
    _refuse_parts(model)
    refuse_number_types(model)
    return model


def _unwrap(given: object) -> object:
    base = sys.modules.get("transformers.pipelines.base")  # imported wherever a pipeline exists
    if base is not None and isinstance(given, base.Pipeline):
        given = given.model
    while isinstance(given, nn.Module):
        if isinstance(given, nn.DataParallel | nn.parallel.DistributedDataParallel):
            given = given.module
        elif (compiled := given._modules.get("_orig_mod")) is not None:  # torch.compile's OptimizedModule
            given = compiled
        else:
            break
    return given


def _refuse_parts(model: PreTrainedModel) -> None:
    """Raise `ModelError` where weights are not in memory, on several devices, or sharded over processes."""
    kind, devices = type(model).__name__, set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ModelError(
                f"expected all weights of this {kind} in memory, and {name} is not: accelerate keeps it on the disk or the"
                " CPU, or it was never loaded; load the model whole, from_pretrained(name) without device_map"
            )
        if hasattr(tensor, "device_mesh"):
            raise ModelError(
                f"expected the weights of this {kind} whole, and {name} is sharded over processes: load the model in one"
                " process, from_pretrained(name) without tp_plan or FSDP"
            )
        devices.add(str(tensor.device))
    if len(devices) > 1:
        raise ModelError(
            f"expected this {kind} on one device, and it is spread over {', '.join(sorted(devices))}: move it to one,"
            f" model.to({min(devices)!r}), or load it without device_map"
        )


@contextmanager
def in_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """While open, the model is in evaluation mode, uncompiled, and runs its experts one by one; afterwards it is restored.

    A compiled module ignores hooks that are set after it was compiled. A configuration that names no architecture gets the name
    of the model's class, as saving does: the model then has the same fingerprint in memory and from its folder.
    """
    with ExitStack() as restored:
        for module in model.modules():
            restored.callback(setattr, module, "training", module.training)
            if module._compiled_call_impl is not None:  # module.compile()
                restored.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)
                module._compiled_call_impl = None
            original = getattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable", None)
            if original is not None:  # module.forward = torch.compile(module.forward)
                restored.callback(setattr, module, "forward", module.forward)
                module.forward = original
        for config in _configs(model):
            experts = config._experts_implementation_internal
            restored.callback(setattr, config, "_experts_implementation_internal", experts)
        if not model.config.architectures:
            restored.callback(setattr, model.config, "architectures", model.config.architectures)
            model.config.architectures = [type(model).__name__]
        model.eval()  # type: ignore[no-untyped-call]
        run_experts_eagerly(model)
        yield


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every configuration of a model and its parts, once."""
    by_id: dict[int, PreTrainedConfig] = {}
    pending = [
        config for module in model.modules() if isinstance(config := getattr(module, "config", None), PreTrainedConfig)
    ]
    while pending:
        config = pending.pop()
        if id(config) not in by_id:
            by_id[id(config)] = config
            parts = (getattr(config, key, None) for key in config.sub_configs)
            pending += [part for part in parts if isinstance(part, PreTrainedConfig)]
    return list(by_id.values())
