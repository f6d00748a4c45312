"""What a running capture reports, for whoever shows it."""

from __future__ import annotations


class CaptureProgress:
    """Every method does nothing until overridden."""

    def planned(self, n_documents: int, n_tokens: int) -> None:
        """Documents tokenised so far, and their tokens."""

    def answered(self, n_prompts: int, n_tokens: int) -> None:
        """Prompts that the model has answered since the last call, and the tokens of the answers; their plan comes later."""

    def started(self, n_tokens: int, n_done: int, nbytes: int) -> None:
        """Filling begins: tokens in all, tokens committed earlier, estimated bytes on disk."""

    def filled(self, n_tokens: int) -> None:
        """Tokens that have run through the model since the last call."""
