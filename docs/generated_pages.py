"""Pages that are made when the documentation is built: the command line, the Python API, notebooks of the examples.

A hook of MkDocs. The command line is Typer's own description of every command; the API is what `actstore.__all__` names,
and the classes that those give to their callers.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import typer.cli

import actstore
from actstore.cli import application
from actstore.store import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

METHODS = {
    "api.naica.NaicaMethod": "store.naica",
    "api.selectivity.SelectivityMethod": "store.selectivity",
    "api.change.ChangeMethod": "store.change",
    "api.coverage.CoverageMethod": "store.coverage",
    "api.explain.ExplainMethod": "store.explain",
    "api.graphs.GraphsMethod": "store.graphs",
    "api.multimodal.MultimodalMethod": "store.multimodal",
    "api.edit.EditsMethod": "store.edits",
}
"""The classes behind a store's methods, and how a user reaches them."""
GIVEN = {
    "What a store gives": (
        "actstore.store.capture.questions.attributions.Attributions",
        "actstore.engine.contributions.rank.ContributionQuery",
        "actstore.engine.contributions.rank.Answer",
    ),
    "What a capture is asked for": (
        "actstore.engine.capture.settings.CaptureSettings",
        "actstore.engine.capture.settings.ImageSettings",
        "actstore.engine.attribution.question_plan.AttributeSettings",
    ),
}
"""Beside the public names, by heading: what their callers get or give."""

_INTRODUCTION = """# Python API

`import actstore` loads neither torch nor transformers; reading a store needs neither. `actstore.capture` and what else runs a
model load both when they are first called. Tables are Arrow tables, which pandas, polars and DuckDB take as they are. Every
method of a store answers with an `Answer`, and is on [the page of its method](methods/index.md) with an example.
"""


def _neighbour(name: str) -> Any:
    """Another module of docs/, which is no package: MkDocs loads hooks by their path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


examples = _neighbour("command_examples")
ROOT = Path(__file__).parent.parent
SOURCES = ("api", "commands", "display", "engine", "explorer", "kernels", "store")


def on_pre_build(config: MkDocsConfig) -> None:
    """Copy the package to where mkdocstrings shall look for it, and nowhere else.

    Griffe would find the checkout through its editable installation and walk all of it, environments included.
    """
    copy = ROOT / "build" / "docs-source"
    shutil.rmtree(copy, ignore_errors=True)
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, copy / "actstore" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ROOT.glob("*.py"):
        shutil.copy(module, copy / "actstore" / module.name)
    config.plugins["mkdocstrings"].get_handler("python")._paths = [str(copy)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and pictures, to those that are written by hand."""
    from mkdocs.structure.files import File

    for name, content in (("command-line.md", command_line()), ("api.md", api()), *notebooks()):
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """A page with its links to notebooks, which hold in the repository, as links to their pages."""
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\((?:\.\./)+examples/([\w-]+)\.ipynb", rf"]({up}notebooks/\1.md", markdown)


_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
"""A colour of a terminal, which a cell that prints may have shown."""


def notebooks() -> Iterator[tuple[str, str | bytes]]:
    """Every notebook of the examples as a page, notebooks/NAME.md, and its pictures; what its cells show is in its file."""
    from nbconvert import MarkdownExporter

    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        resources = {"unique_key": path.stem, "output_files_dir": f"{path.stem}-pictures"}
        text, made = MarkdownExporter().from_filename(str(path), resources)
        text = text.replace("](../docs/", "](../")  # links of a notebook hold where it lies
        text = _ESCAPE.sub("", text)
        yield f"notebooks/{path.stem}.md", f"{text}\nThis page is `examples/{path.name}`, as it was run last.\n"
        for name, data in made["outputs"].items():
            yield f"notebooks/{name}", data


def command_line() -> str:
    """Every command as Markdown: what it does, an example with its output and picture, its arguments and options."""
    command: Any = typer.main.get_command(application())
    context = command.make_context("actstore", [], resilient_parsing=True)
    text = typer.cli.get_docs_for_click(obj=command, ctx=context, name="actstore", title="Command line")
    # The lists of subcommands cut their sentences short, and the headings that follow say the same.
    text = re.sub(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+", "", text)
    text = re.sub(r"^(\$ actstore .*)$", lambda usage: re.sub(r"[{}]", "", usage[1]), text, flags=re.MULTILINE)
    groups = {name: list(one.commands) for name, one in command.commands.items() if hasattr(one, "commands")}
    head, *sections = _SECTION.split(text)
    parts = [head, _overview(command)]
    for heading, body in zip(sections[::2], sections[1::2], strict=True):
        parts += [heading, _with_example(heading.strip("#` \n").removeprefix("actstore "), body, groups)]
    return "".join(parts)


_SECTION = re.compile(r"^(##+ `actstore [^`]+`\n)", re.MULTILINE)


def _with_example(command: str, body: str, groups: dict[str, list[str]]) -> str:
    """The section of a command, with its example before its usage; of a group, a link to its subject."""
    own = examples.SUBJECTS[command.split()[0]]
    if command in groups:
        return body.replace("**Usage**:", f"Explained in [{examples.title_of(own)}]({own}).\n\n**Usage**:", 1)
    example = examples.example_for(command, groups)
    if example is None:
        raise ValueError(f"No page shows what `actstore {command}` prints: add it to a tour of demo/tour.py, on {own}.")
    subject = "" if example.page == own else f"Explained in [{examples.title_of(own)}]({own}).\n\n"
    return body.replace("**Usage**:", f"{examples.as_markdown(example)}{subject}**Usage**:", 1)


def _overview(command: Any) -> str:
    """A table of all commands: the first sentence of what each says of itself, and the page on which it is explained."""
    rows = ["## All commands\n", "| command | what it does | explained in |", "|---|---|---|"]
    for name, one in command.commands.items():
        own = examples.SUBJECTS[name]
        for path, leaf in (
            [(name, one)]
            if not hasattr(one, "commands")
            else [(f"{name} {sub}", leaf) for sub, leaf in one.commands.items()]
        ):
            sentence = re.split(r"(?<=[.])\s(?=[A-Z*])", " ".join(leaf.help.split()))[0]
            place = f"actstore-{path.replace(' ', '-')}"
            rows.append(f"| [`{path}`](#{place}) | {sentence} | [{examples.title_of(own)}]({own}) |")
    return "\n".join(rows) + "\n\n"


def api() -> str:
    """A reference to every public name, for mkdocstrings to fill in."""
    return "\n".join(_api_lines())


def _api_lines() -> Iterator[str]:
    yield _INTRODUCTION
    yield "## Functions and classes\n"
    public = [getattr(actstore, name) for name in actstore.__all__]
    for found in sorted(public, key=inspect.isclass):
        if inspect.isclass(found) or inspect.isfunction(found):
            options = "    options:\n      inherited_members: true\n" if found is actstore.Store else ""
            yield f"::: {found.__module__}.{found.__qualname__}\n{options}"
    yield "## The methods of a store\n"
    for name, attribute in METHODS.items():
        yield f"### `{attribute}`\n"
        yield f"::: actstore.{name}\n    options:\n      heading_level: 4\n"
    for heading, names in GIVEN.items():
        yield f"## {heading}\n"
        yield from (f"::: {name}\n" for name in names)
    yield "## Errors\n"
    yield "Every error that a mistake of the caller's can cause is an `ActstoreError`, and its message says what to do.\n"
    for found in vars(errors).values():
        if inspect.isclass(found) and found.__module__ == errors.__name__:
            yield f"::: {found.__module__}.{found.__qualname__}\n"
