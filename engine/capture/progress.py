"""What a running capture reports, for whoever wants to show it. Knows nothing about showing."""

from __future__ import annotations


class CaptureProgress:
    """Every method does nothing until overridden."""

    def planned(self, n_documents: int, n_tokens: int) -> None:
        """So many documents have been tokenised."""

    def answered(self, n_prompts: int, n_tokens: int) -> None:
        """The model has answered so many more prompts, with so many more tokens, before anything is planned of them."""

    def started(self, n_tokens: int, n_done: int, nbytes: int) -> None:
        """Filling begins: tokens in all, tokens committed earlier, estimated bytes on disk."""

    def filled(self, n_tokens: int) -> None:
        """So many more tokens have run through the model."""
