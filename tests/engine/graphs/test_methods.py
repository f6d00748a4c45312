"""The tables of closed sets: methods, match modes and masks, and what is derived from them."""

from __future__ import annotations

import dataclasses

import pytest

from actstore.engine.graphs.methods import CORPUS, METHODS, PUBLISHED
from actstore.engine.graphs.probes.evidence import ROUNDS
from actstore.engine.graphs.probes.plan import MASK_ROLES, MASKS, NO_TOKEN, ProbeSettings, mask_token
from actstore.engine.graphs.scores import MEASURES as SCORE_MEASURES
from actstore.engine.graphs.scores import ScoreList
from actstore.engine.graphs.similar import MEASURES, Pairs
from actstore.engine.graphs.token_sets import MATCHES


def test_the_methods_are_those_of_the_records() -> None:
    assert (*METHODS,) == (CORPUS, PUBLISHED) == ("corpus", "published")
    assert [method.set_name for method in METHODS.values()] == ["graphs", "published"]
    assert METHODS[CORPUS].draws_ignored
    assert not METHODS[PUBLISHED].draws_ignored


@pytest.mark.parametrize("name", [*MASKS])
def test_every_mask_is_a_setting_that_gives_a_token(name: str) -> None:
    tokens = {"mask": 4, "unk": 5, "pad": 6}
    assert ProbeSettings(mask=name).mask == name
    _, token = mask_token(tokens, name, 77)
    assert token == {"auto": 4, "typical": 77, "delete": NO_TOKEN}.get(name, tokens.get(name))


def test_masks_that_are_special_tokens_are_taken_in_the_order_of_the_table() -> None:
    assert MASK_ROLES == ("mask", "unk", "pad")
    tokens = {"mask": 4, "unk": 5, "pad": 6}
    for role in MASK_ROLES:
        assert mask_token(tokens, "auto", 77) == (role, tokens.pop(role))
    assert mask_token(tokens, "auto", 77) == ("typical", 77)


def test_measures_are_the_columns_that_are_shown() -> None:
    assert (*MEASURES,) == tuple(field.name for field in dataclasses.fields(Pairs))[2:]
    assert [*ScoreList().summary()] == [*SCORE_MEASURES, "undefined", "by_layer"]


def test_match_modes_and_rounds_keep_their_names_and_order() -> None:
    assert (*MATCHES,) == ("normalised", "exact", "contains", "regex")
    assert [match.is_of_whole_tokens for match in MATCHES.values()] == [True, True, False, False]
    assert ROUNDS == ("suffix", "mask", "substitute", "variant")
