"""Which excerpts a neuron is explained from, how explanations are scored, and which server is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

SCORES: Final = ("detection", "fuzzing", "graph")
"""What `score` takes: questions to a server about windows, about tokens; and both put to the neuron's graph."""
OTHERS: Final = ("random", "nearest")
"""What `others` takes: excerpts without firing from anywhere, or from where the neurons fire that mostly fire with this one."""
KEY_VARIABLE: Final = "OPENAI_API_KEY"
LOCAL: Final = ("localhost", "127.0.0.1", "::1")
"""Hosts that are this machine: what is sent there crosses no network."""


@dataclass(frozen=True)
class ExplainSettings(Typed):
    """What decides prompts and questions. All explanations of one name have the same."""

    exemplars: int = 20
    """Number of excerpts with firing that the explainer is shown."""
    tests: int = 20
    """Number of other excerpts with firing that test the explanation; as many without firing are asked about too."""
    quantiles: int = 10
    """Number of equal parts of the firing excerpts, by activation, of which each gives as many of both."""
    context: int = 32
    """Tokens per excerpt."""
    share: float = 0.5
    """A neuron fires where its activation is at least this share of its maximum over the capture."""
    others: str = "random"
    """One of `OTHERS`: where excerpts without firing come from."""
    batch: int = 5
    """Number of excerpts per request to the scorer."""
    seed: int = 0
    scorer_model: str = ""
    """As the server is asked for it; the explainer's where it is empty."""
    temperature: float = 0.0
    max_new_tokens: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("exemplars", "quantiles", "batch", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"`{name}` must be 1 or more, found {getattr(self, name)}.")
        if self.tests < 0 or self.seed < 0:
            raise InvalidInputError(f"`tests` and `seed` must be 0 or more, found {self.tests} and {self.seed}.")
        if self.context < 2:
            raise InvalidInputError(f"`context` must be 2 tokens or more, found {self.context}.")
        if not 0 < self.share <= 1:
            raise InvalidInputError(f"`share` must be above 0 and at most 1, found {self.share}.")
        if self.others not in OTHERS:
            raise InvalidInputError(f"Expected `others` to be one of {', '.join(OTHERS)}, found {self.others!r}.")
        if not 0 <= self.temperature <= 2:
            raise InvalidInputError(f"`temperature` must be from 0 to 2, found {self.temperature}.")


@dataclass(frozen=True)
class ServerSettings(Typed):
    """Where questions are sent, and how patiently."""

    endpoint: str = ""
    """Such as http://localhost:8000/v1: what stands before /chat/completions."""
    key_variable: str = KEY_VARIABLE
    """The environment variable that holds the server's key; none is sent where it is not set, or the name is empty."""
    requests: int = 4
    """Maximum number of requests at once."""
    timeout_s: float = 120.0
    """How long to wait for a server that says nothing."""
    retries: int = 5
    """How often a request is repeated that a busy server refuses, or that does not reach it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.requests < 1 or self.retries < 0:
            raise InvalidInputError(
                f"`requests` must be 1 or more and `retries` 0 or more, found {self.requests} and {self.retries}."
            )
        if not 0 < self.timeout_s <= 86_400:
            raise InvalidInputError(f"`timeout_s` is a number of seconds above 0, found {self.timeout_s:g}.")

    @property
    def url(self) -> str:
        """The address that requests go to; `InvalidInputError` where the endpoint cannot be one."""
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInputError(
                f"Expected `endpoint` to be an address such as http://localhost:8000/v1, found {self.endpoint!r}."
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InvalidInputError(
                "Expected `endpoint` to be an address without user, password and query, which would be written down. Put the "
                f"server's key into the environment, as {self.key_variable or KEY_VARIABLE}."
            )
        base = self.endpoint.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    @property
    def host(self) -> str:
        """Host and port, which are kept with every answer."""
        return urlsplit(self.url).netloc

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        return urlsplit(self.url).hostname in LOCAL

    def key(self) -> str:
        """The server's key, empty where there is none; `InvalidInputError` where it would cross a network in plain text."""
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        if key and not self.is_local and urlsplit(self.url).scheme == "http":
            raise InvalidInputError(
                f"The key in {self.key_variable} would be sent to {self.host} in plain text. Name an `endpoint` with https, or "
                'send no key with `key_variable=""`.'
            )
        if not key.isascii() or any(c.isspace() for c in key):
            raise InvalidInputError(f"The key in {self.key_variable} holds characters that no key has. Check it.")
        return key
