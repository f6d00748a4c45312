"""Every error that actstore raises on purpose, grouped by what the caller can do about it.

    ActstoreError
    ├── NotFoundError (KeyError)        no such store, capture, layer, neuron, document: name one that exists
    ├── InvalidInputError (ValueError)  an argument or a file is not what it must be: correct it
    │   └── CallError (TypeError)       a parameter that there is not, or one too many or too few: correct the call
    ├── ReadOnlyError                   another process is writing there: wait, or name another
    ├── StorageError (OSError)          a server cannot be reached, or refuses: correct address or credentials, or try again
    ├── ServerError (OSError)           a language model's server gives no answer: correct address or key, or try again
    ├── FormatError                     a store's bytes contradict its records: verify, refill, or update actstore
    ├── CaptureError                    a run stopped before its end (disk full, interrupted): resume
    └── ModelError                      the model cannot be loaded, or has no feed-forward neurons

Each message says what was expected, what was found, where, and what to do.
"""

from __future__ import annotations

import errno
from typing import Final

FIND_DAMAGE: Final = "Run `store.verify()` to find every damage."
"""What a reader of damaged bytes advises, where nothing more is known."""


class ActstoreError(Exception):
    """Base of all errors below; the command line turns it into one sentence and exit status 2 (1 for `CaptureError`)."""


class NotFoundError(ActstoreError, KeyError):
    """A store, capture, layer, neuron or document that does not exist."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class InvalidInputError(ActstoreError, ValueError):
    """An argument, corpus or questions file that is not what it must be."""


class CallError(InvalidInputError, TypeError):
    """A function of the API that is called with other parameters than it has."""


class ReadOnlyError(ActstoreError):
    """Another writer owns the capture, or the store cannot be written."""


class StorageError(ActstoreError, OSError):
    """A server on which a store lies cannot be reached, or refuses; it says nothing about the bytes there."""

    may_pass: bool = False
    """Whether the same request may succeed later: a cut connection, a busy server."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.errno = errno.ECONNABORTED  # what has no number is taken for the fault of a library that reads a file


class UnlistableError(StorageError):
    """Keys were to be listed in a storage that can only read those it is asked for."""


class ServerError(ActstoreError, OSError):
    """A language model's server that cannot be reached, refuses, or gives no answer; what it answered before is kept."""


class FormatError(ActstoreError):
    """Bytes on disk that contradict their records, or a store of a newer format.

    What was `found` and the `advice` to a reader are apart: `verify` and `repair`, which list what was found, give their own.
    """

    def __init__(self, found: str, advice: str = "") -> None:
        """Both in sentences; `advice` is empty where there is none, or none but for this very error."""
        super().__init__(found, *([advice] if advice else []))

    def __str__(self) -> str:
        return " ".join(map(str, self.args))

    @property
    def found(self) -> str:
        """The message without the advice."""
        return str(self.args[0])

    @property
    def advice(self) -> str:
        """What a reader may do."""
        return str(self.args[1]) if len(self.args) > 1 else ""


def finding(error: BaseException) -> str:
    """What an error says was found, as a phrase: without a full stop, and without advice where it has that apart."""
    return (error.found if isinstance(error, FormatError) else str(error)).rstrip(".")


class CaptureError(ActstoreError):
    """A run that stopped before its plan was filled; what was committed stays readable."""


class ModelError(ActstoreError):
    """A model that cannot be loaded, or one without feed-forward neurons."""


class MissingPackageError(ActstoreError, ModuleNotFoundError):
    """A package that this needs is not installed: the installation is one for reading stores only."""
