"""Walks over models are what is tested here: none is taken for another."""

import pytest


@pytest.fixture(autouse=True)
def every_walk(explores_each: None) -> None:
    """As `explores_each`."""
