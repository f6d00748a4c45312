"""Messages of the API, which name Python calls and parameters, as the command line says them: commands and options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from actstore.commands.usage import called

if TYPE_CHECKING:
    from collections.abc import Iterable


_PARAMETER: Final = re.compile(r"`(?P<name>[a-z_]\w*)(?: ?= ?(?P<value>[^`]+))?`")
"""A parameter that a message names, and the value that it should have: `layers`, `precision="exact"`, `weights=False`."""

_QUOTES: Final = " \"'"

_SYNONYMS: Final = {
    "baselines": "baseline",
    "captures": "capture",
    "form": "method",
    "forms": "activation",
    "label": "by",
    "methods": "method",
    "n_random": "random",
    "n_tokens": "max_new_tokens",
    "protocols": "protocol",
}
"""Parameter of the engine → the name of the option, where they differ."""


def name_options(message: str, parameters: Iterable[Any]) -> str:
    """A message with the options of a command in place of the Python parameters that it names.

    `layers` becomes --layers, `precision="exact"` --precision exact, `resume=True` --resume, `weights=False` --no-weights, and
    `sites=["mlp.post", "mlp.gate"]` --site mlp.post --site mlp.gate.
    A name that is no option of the command stays as it is; that of an argument becomes what the usage calls it.
    """
    known: dict[str, Any] = {}
    for parameter in parameters:  # the command's own come first
        known.setdefault(parameter.name, parameter)
        for option in parameter.opts:
            known.setdefault(option.lstrip("-").replace("-", "_"), parameter)

    def option_for(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        parameter = known.get(name) or known.get(_SYNONYMS.get(name, ""))
        if parameter is None:
            return match[0]
        flag = called(parameter)
        if parameter.param_type_name == "argument" or value is None or value == "True":
            return flag
        if value == "False" and parameter.secondary_opts:
            return str(parameter.secondary_opts[0])
        values = value.strip("[]()").split(",") if value[0] in "[(" else [value]
        return " ".join(f"{flag} {one.strip(_QUOTES)}" for one in values if one.strip())

    return _PARAMETER.sub(option_for, message)


_CALL: Final = re.compile(r"`(?P<of>actstore|store)\.(?P<path>[a-z_]+(?:\.[a-z_]+)*)\((?P<arguments>[^`]*)\)`")
"""A call of the API that a message names: `actstore.capture(…)`, `store.graphs.build(name="mine")`."""

_OPTIONS: Final = re.compile(r"options=\w+\(([^()]*)\)")
"""Parameters that Python takes together, and the command line one by one."""

_OTHER_COMMANDS: Final = {"edits": "edit", "fill_top_tokens": "contributions", "import_activations": "import"}
"""Name in Python → the command, where they differ."""


def name_commands(message: str, application: Any) -> str:
    """A message with commands in place of the Python calls that it names.

    `actstore.capture(…, options=RunOptions(resume=True))` becomes `actstore capture … --resume`, and `store.verify()`
    `actstore verify STORE`. A call that is no command stays as it is.
    """

    def command_for(match: re.Match[str]) -> str:
        path = match["path"].split(".")
        command, words = application, ["actstore"]
        for name in path:
            word = _OTHER_COMMANDS.get(name, name).replace("_", "-")
            command = getattr(command, "commands", {}).get(word)
            if command is None:
                return match[0]
            words.append(word)
        words += ["STORE"] if match["of"] == "store" else []
        words += ["--fill-top-tokens"] if path == ["fill_top_tokens"] else []
        taken = getattr(command, "commands", {}).get("show", command).params
        arguments = _OPTIONS.sub(r"\1", match["arguments"]).split(", ")
        for argument in () if arguments in ([""], ["…"]) else arguments:
            name, given, _ = argument.partition("=")
            words.append(name_options(f"`{argument}`", taken).strip("`") if given else name.upper())
        return f"`{' '.join(words)}`"

    return _CALL.sub(command_for, message)
