"""Every model type of the installed transformers: its sites hold what they are said to hold, or it is refused with a reason.

The proofs are `sweep.prove`; `python tests/support/sweep.py --write` writes what they found into docs/architecture.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from sweep import CAUSAL, OTHERS, NotBuiltError, Outcome, as_markdown, prove

from actstore.engine.models.names import SITES

pytestmark = [
    # models announce deprecated arguments of their own, and torch's of theirs, on being built and run
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # BigBird, mamba and others warn about kernels they do without, and about shapes that suit them better
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

REFUSED = {
    "falcon_mamba": "it is a state-space or recurrent model",
    "mamba": "it is a state-space or recurrent model",
    "mamba2": "it is a state-space or recurrent model",
    "blt": "one row for each token",  # its global layers hold patches of bytes
    "musicgen": "one row for each token",  # reads four codebooks at once
    "musicgen_melody": "one row for each token",
    "gemma4_unified_assistant": "to run on token ids",  # a draft model, like those of NOT_BUILT
}
"""Types without neurons, or whose rows are not tokens: type to a part of the reason."""

NOT_BUILT = {
    "gemma3n": "requires the timm library",  # for its images; its text model is gemma3n_text
    # draft models whose layers all read the keys and values of a target model, so that they do not run alone
    "gemma4_assistant": "must be 0",
    "gemma4_unified_assistant": "layer types producing a cache",
}
"""Types of which no tiny model can be made by every supported transformers: type to a part of the reason."""

NEWEST = "5.24"
"""The transformers these tables were written for; older ones lack types, and defaults that newer ones have."""


@pytest.mark.parametrize("name", dict.fromkeys((*CAUSAL, *OTHERS)))
def test_every_type_passes_or_is_refused_with_its_reason(name: str) -> None:
    classes = [None] if name in CAUSAL else []
    classes += [OTHERS[name]] if name in OTHERS else []
    for class_name in classes:
        try:
            outcome = prove(name, class_name)
        except NotBuiltError as error:
            newest = transformers.__version__.startswith(NEWEST)
            if name not in NOT_BUILT and not newest:
                pytest.skip(f"transformers {transformers.__version__} has no tiny {name}: {error}")
            if newest and NOT_BUILT.get(name, "to be built") not in str(error):
                raise
            continue
        # A type that could not be built may be, after an update: what is built is proved like any other.
        if name in REFUSED:
            assert outcome.result == "refused"
            assert REFUSED[name] in outcome.reason
        else:
            assert outcome.result == "pass", outcome.reason
            assert "mlp.post" in outcome.sites


def test_nearly_all_causal_types_are_expected_to_pass() -> None:
    # of about 127 that build without special care, at least 110 were asked for
    passing = set(CAUSAL) - REFUSED.keys() - NOT_BUILT.keys()
    assert len(passing) >= (170 if transformers.__version__.startswith(NEWEST) else 150)


def test_the_table_groups_types_that_behave_alike() -> None:
    every = tuple(SITES)
    alike = [Outcome(name, "pass", "", "causal", "gated", "dense", every) for name in ("llama", "qwen2")]
    refused = Outcome("mamba", "refused", "it is a state-space model")
    lines = as_markdown([*alike, refused]).splitlines()
    assert lines[2] == "| `llama`, `qwen2` | causal | gated | dense | all | pass |"
    assert lines[3] == "| `mamba` |  |  |  |  | refused: it is a state-space model |"
    assert len(lines) == 4


def test_the_documentation_lists_every_type() -> None:
    page = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("<!-- architectures -->")[2].partition("<!-- /architectures -->")[0]
    if transformers.__version__.startswith(NEWEST):
        assert [name for name in CAUSAL if f"`{name}`" not in table] == []
