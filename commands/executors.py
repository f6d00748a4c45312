"""Options that say in which processes, on which machines and on which device a command computes."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.commands.options import complete

Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Number of processes that share the work, each with a model of its own where one is needed. [default: one; on Ray "
        "one per GPU, or per machine without]",
    ),
]
ScanDevice = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="What computes: auto, cpu, cuda or a numbered device such as cuda:1; auto is a GPU where there is one.",
        autocompletion=complete(("auto", "cpu", "cuda")),
    ),
]
On = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="local|ray|ray://HOST:PORT",
        help="Where they run: on this machine, on the Ray cluster that it belongs to or RAY_ADDRESS names, or on another one.",
        autocompletion=complete(("local", "ray", "ray://")),
    ),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        min=0,
        help="GPUs that Ray gives each worker, such as 0.5. [default: 1 where there are some]",
    ),
]
