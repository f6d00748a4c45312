"""Triton's interpreter, without what it does again for every call of a device function: a third of a kernel's time."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def patch_once_per_launch(patch: pytest.MonkeyPatch) -> None:
    """Replace the functions of `triton.language` by interpreted ones at a kernel's launch, not at each call inside it too.

    A call inside replaces what already is replaced, after a search through all names of the module, and restores nothing; the
    launch does at its end. Where there is no Triton, or one that works otherwise, nothing is done.
    """
    try:
        from triton import language
        from triton.runtime import interpreter
    except ImportError:
        return
    if not hasattr(interpreter, "_LangPatchScope"):
        return
    patch_lang, replaced = interpreter._patch_lang, set[Any]()

    class Launch(interpreter._LangPatchScope):
        """What one launch has replaced."""

        def restore(self) -> None:
            replaced.clear()
            super().restore()

    def patch_new(function: Any) -> Any:
        modules = {value for value in function.__globals__.values() if inspect.ismodule(value)}
        modules &= {language, language.core}
        if modules and modules <= replaced:
            return interpreter._LangPatchScope()
        is_launch = not replaced
        scope = patch_lang(function)
        replaced.update(modules)
        if is_launch:
            scope.__class__ = Launch
        return scope

    patch.setattr(interpreter, "_patch_lang", patch_new)
