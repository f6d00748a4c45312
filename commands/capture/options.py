"""The options of `actstore capture`, which `actstore plan` has too."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from actstore.commands.choices import (
    BeginName,
    DecodingErrorsName,
    PartName,
    PrecisionName,
    SiteName,
    StdinFormatName,
    SummedName,
)
from actstore.commands.options import SEED_HELP, complete
from actstore.engine.capture.answers.positions import OF_IMAGES

ANSWERS: Final = "Generated answers"
IMAGES: Final = "Images"
"""Panel of --help for options that concern images only."""
TEXT: Final = "Text"
SPARSE: Final = "Precision sparse"

Corpus = Annotated[
    str,
    typer.Argument(
        metavar="CORPUS",
        help="Text or images: a file, folder, glob, JSONL, CSV, Parquet or saved dataset; - reads text from stdin.",
    ),
]
Sites = Annotated[
    list[SiteName] | None,
    typer.Option("--site", help="Site to capture; repeat for more. [default: mlp.post]"),
]
CapturedLayers = Annotated[
    str | None,
    typer.Option(
        metavar="LAYERS",
        help="Only these layers, such as 0,3-5. [default: all of the language model, or of --part]",
    ),
]
Precision = Annotated[PrecisionName | None, typer.Option(help="How activations are encoded. [default: exact]")]
Keep = Annotated[
    float | None, typer.Option(help="Share of the values that is kept. [default: 0.05]", rich_help_panel=SPARSE)
]
GateSign = Annotated[
    bool | None, typer.Option(help="Keep the sign of each gate, one bit per value. [default: for gated models]")
]
Exemplars = Annotated[int | None, typer.Option(help="Number of top windows recorded per neuron. [default: 20]")]
Context = Annotated[
    int | None,
    typer.Option(help="Maximum number of tokens per window. [default: the model's, for text at most 1024]"),
]
CapturedPositions = Annotated[
    str | None,
    typer.Option(
        metavar="POSITIONS",
        help="all, last, or indices such as 0,-1; of answers also generated (the positions that predict them), of images "
        "image; and combinations such as generated,image. [default: all]",
        autocompletion=complete(OF_IMAGES),
    ),
]
BatchTokens = Annotated[int | None, typer.Option(help="Tokens per forward pass. [default: 4096]")]
BlockTokens = Annotated[
    int | None,
    typer.Option(help="Tokens per block, the unit of work. [default: 16384, fewer where --memory does not suffice]"),
]
Bundle = Annotated[
    bool | None,
    typer.Option(help="Put all files of a block into one. [default: where there would be more than 100,000]"),
]
Compression = Annotated[
    str | None,
    typer.Option(
        metavar="huffman|none|lz4[:1-9]|zstd[:1-9]",
        help="How values on disk are compressed: huffman, none, or Blosc's lz4 or zstd at a level. "
        "[default: huffman for int8 and sparse, else lz4:5]",
        autocompletion=complete(("huffman", "none", "lz4", "zstd")),
    ),
]
Contributions = Annotated[
    SummedName | None,
    typer.Option(
        help="Sum, while the model runs, what each neuron contributes to the next token of each position; no values need be "
        "kept for it: --precision none."
    ),
]
ContributionsBy = Annotated[
    str | None,
    typer.Option("--by", metavar="LABEL", help="One of the label columns, by whose values contributions are summed."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(help="Number of tokens after which reading ends; the last window is kept whole."),
]
MaxDocuments = Annotated[int | None, typer.Option(help="Maximum number of documents to read.")]
LabelColumns = Annotated[
    list[str] | None, typer.Option("--label", metavar="COLUMN", help="Column kept as a label; repeat for more.")
]
Pattern = Annotated[str | None, typer.Option(metavar="GLOB", help="File names to read in a folder, such as '*.py'.")]
Generate = Annotated[
    bool | None,
    typer.Option(
        "--generate",
        help="Let the model answer each prompt first: each document, or image. [default: captions are answers to images]",
        rich_help_panel=ANSWERS,
    ),
]
Answers = Annotated[
    int | None,
    typer.Option(help="Number of answers to each prompt; several are sampled. [default: 1]", rich_help_panel=ANSWERS),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="Text that ends an answer; repeat for more.", rich_help_panel=ANSWERS),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        help="Put prompts into the tokenizer's chat template. [default: where it has one]", rich_help_panel=ANSWERS
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Prompt of images whose record has none. [default: Describe the image in few words.]",
        rich_help_panel=IMAGES,
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="Forced beginning of every answer, such as 'An image of'.", rich_help_panel=IMAGES
    ),
]
MaxAnswerTokens = Annotated[
    int | None,
    typer.Option(help="Maximum number of tokens of a generated answer. [default: 50]", rich_help_panel=ANSWERS),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="Sample at this temperature. [default: always the most probable token]", rich_help_panel=ANSWERS),
]
TopP = Annotated[
    float | None,
    typer.Option(help="Sample from the most probable tokens of this total probability.", rich_help_panel=ANSWERS),
]
SamplingSeed = Annotated[int | None, typer.Option(help=SEED_HELP, rich_help_panel=ANSWERS)]
Part = Annotated[PartName | None, typer.Option(help="Part of the model. [default: language]", rich_help_panel=IMAGES)]
ImageColumn = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Column with paths or bytes. [default: image]", rich_help_panel=IMAGES),
]
PromptColumn = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Column with prompts. [default: prompt]", rich_help_panel=IMAGES),
]
CaptionColumn = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Column with captions. [default: caption]", rich_help_panel=IMAGES),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Stop at an image that cannot be used, instead of skipping it.", rich_help_panel=IMAGES
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(help="Tokens of the previous window that each window repeats. [default: 0]", rich_help_panel=TEXT),
]
Begin = Annotated[
    BeginName | None,
    typer.Option(help="Whether special tokens surround each window. [default: auto]", rich_help_panel=TEXT),
]
TextColumn = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column with the text. [default: text]", rich_help_panel=TEXT)
]
IdsColumn = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Column with token ids. [default: input_ids]", rich_help_panel=TEXT),
]
PreferIds = Annotated[
    bool | None,
    typer.Option("--prefer-ids", help="Read the ids where a record has text and ids.", rich_help_panel=TEXT),
]
DecodingErrors = Annotated[
    DecodingErrorsName | None,
    typer.Option(help="How invalid UTF-8 is treated. [default: strict]", rich_help_panel=TEXT),
]
StdinFormat = Annotated[
    StdinFormatName | None, typer.Option(help="Format of standard input. [default: text]", rich_help_panel=TEXT)
]
OtherTokenizer = Annotated[
    str | None,
    typer.Option(metavar="TOKENIZER", help="Another tokenizer than the model's own.", rich_help_panel=TEXT),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="BYTES",
        help="Memory of block buffers, such as 2GB: blocks are planned to fit. [default: 3 times the weights of the MLPs, "
        "from 1 to 34GB]",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Number of encoder threads. [default: half the processors]")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Estimate the size and the time of the capture; write nothing.")
]
AllowMixed = Annotated[
    bool,
    typer.Option(
        "--allow-mixed",
        help="Go on with a capture although this machine, or its versions, may compute in other bits; it is recorded.",
    ),
]
