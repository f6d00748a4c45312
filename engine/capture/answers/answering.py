"""The documents of a corpus as prompts that the model answers, group by group, before the plan of the capture is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.inputs.documents import Answered, Document
from actstore.engine.models.generate import AnswerFile, GenerationSettings, answers_key
from actstore.engine.models.generation.sampling import Sampling
from actstore.engine.models.generation.text import Ends, TextPrompt, check_generates, continue_texts, end_tokens
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.capture.settings import CaptureSettings
    from actstore.engine.models.generate import Ids
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.storage.folder import Folder

GROUP_ANSWERS: Final = 256
"""Answers per group, of as many prompts as that makes: the maximum that an interrupted run has to generate again."""


@dataclass(frozen=True)
class TextAnswerer:
    """Lets a model answer documents."""

    model: LoadedModel
    tokenizer: TextTokenizer | None
    prefix: tuple[int, ...]
    """Special tokens in front of a prompt that is in no chat template."""
    settings: CaptureSettings
    file: AnswerFile
    progress: CaptureProgress

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        fingerprint: str,
        tokenizer: TextTokenizer | None,
        prefix: tuple[int, ...],
        settings: CaptureSettings,
        place: tuple[Folder, str, bool],
        progress: CaptureProgress,
    ) -> TextAnswerer:
        """That of a capture; `place` is its folder, its name, and whether earlier answers there are taken.

        `InvalidInputError` for a model that continues no text, and for what needs a tokenizer, or a template, that is missing.
        """
        check_generates(model.spec)
        template = None if tokenizer is None else tokenizer.chat_template
        if settings.chat and template is None:
            raise InvalidInputError(
                f"{model.spec.name} has no chat template with its tokenizer. Leave `chat` out, or name a `tokenizer` with one."
            )
        if settings.stop and tokenizer is None:
            raise InvalidInputError(
                "A text of `stop` is found by a tokenizer, and there is none. Name one as `tokenizer`."
            )
        folder, name, resume = place
        prepared = [
            "text", tokenizer and tokenizer.fingerprint, template, settings.chat, prefix, settings.context, settings.answers,
            settings.stop,
        ]  # fmt: skip
        key = answers_key(fingerprint, str(model.dtype), settings.of(GenerationSettings), repr(prepared))
        return cls(model, tokenizer, prefix, settings, AnswerFile(folder, name, key, resume=resume), progress)

    def answer(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Each document once for each of its answers: the ids that the model generated, exactly, after those of the prompt."""
        documents, first = iter(documents), 0
        per_group = max(1, GROUP_ANSWERS // self.settings.answers)
        number = 0
        while group := list(islice(documents, per_group)):
            prompts = [self._prompt(document) for document in group]
            answers = self._answers(number, first, group, prompts)
            for index, (document, ids) in enumerate(zip(group, prompts, strict=True)):
                for k in range(self.settings.answers):
                    yield self._answered(document, ids, answers[index * self.settings.answers + k], k)
            first, number = first + len(group), number + 1

    def check(self, documents: Iterable[Document]) -> None:
        """Raise `InvalidInputError` where a document is no prompt that can be answered: hours before its turn comes."""
        for document in documents:
            self._prompt(document)

    def count_cut(self) -> CutAnswers:
        """A count of the answers that end where their window does."""
        context = self.settings.context
        assert context is not None
        return CutAnswers(context, self.settings.max_new_tokens, end_tokens(self.model))

    def _prompt(self, document: Document) -> NDArray[np.int32]:
        """The ids of a document as a prompt; `InvalidInputError` where they leave no room for an answer."""
        if document.answered is not None:
            raise InvalidInputError(
                f"{document.source} has an answer already, and is captured with it. Leave `generate` out."
            )
        if document.ids is not None:
            if self.settings.chat:
                raise InvalidInputError(
                    f"{document.source} is token ids, and a chat template takes text. Leave `chat` out."
                )
            ids = document.ids.astype(np.int32)
        else:
            ids = self._of_text(document.text or "")
        size, context = self.model.spec.n_vocabulary, self.settings.context
        if size is not None and len(ids) and int(ids.max()) >= size:
            raise InvalidInputError(
                f"Token ids must be below the model's vocabulary of {size}, found {int(ids.max())} in {document.source}."
            )
        if not len(ids):
            raise InvalidInputError(f"{document.source} has no token, and a prompt has at least one. Leave it out.")
        if context is not None and len(ids) >= context:
            raise InvalidInputError(
                f"{document.source} is a prompt of {len(ids):,} tokens, which leaves no room for an answer in a window of "
                f"{context:,}. Shorten it, or raise `context` as far as the model's."
            )
        return ids

    def _of_text(self, text: str) -> NDArray[np.int32]:
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise InvalidInputError("This corpus is text, and there is no tokenizer for it. Name one with `tokenizer`.")
        if tokenizer.chat_template is not None and self.settings.chat is not False:
            return tokenizer.encode([tokenizer.in_chat_template(text)])[0]  # which writes its own special tokens
        return np.concatenate([np.array(self.prefix, np.int32), tokenizer.encode([text])[0]])

    def _answers(self, number: int, first: int, group: list[Document], prompts: list[Ids]) -> list[Ids]:
        keys = [document.sha256 for document in group]
        answers = self.file.read(number, keys)
        if answers is not None:
            self.progress.answered(len(answers), sum(map(len, answers)))
            return answers
        settings, n = self.settings, self.settings.answers
        room = settings.context if settings.context is not None else max(map(len, prompts)) + settings.max_new_tokens
        asked = [
            TextPrompt(ids, (first + index, k), min(settings.max_new_tokens, room - len(ids)))
            for index, ids in enumerate(prompts)
            for k in range(n)
        ]
        answers = continue_texts(
            self.model,
            asked,
            Sampling(settings.temperature, settings.top_p, settings.seed),
            Ends(end_tokens(self.model), settings.stop, self.tokenizer.decode if self.tokenizer else _no_text),
            batch_tokens=settings.batch_tokens,
            on_texts=lambda n_texts, n_tokens: self.progress.answered(n_texts, n_tokens),
        )
        self.file.write(number, keys, answers)
        return answers

    def _answered(self, document: Document, prompt: Ids, answer: Ids, k: int) -> Document:
        text = self.tokenizer.decode(answer).strip() if self.tokenizer else ""
        answered = Answered(len(prompt), document.text or "", text, k, document)
        ids = np.concatenate([prompt, answer]).astype(np.int64)
        return Document(document.source, ids=ids, labels=document.labels, answered=answered)


def _no_text(_ids: object) -> str:
    return ""


@dataclass
class CutAnswers:
    """Counts answers that end with the window and not of themselves; an observer of what is planned."""

    context: int
    max_new_tokens: int
    ends: frozenset[int]
    n_answers: int = field(default=0, init=False)
    n_cut: int = field(default=0, init=False)

    def observe(self, document: Document, ids: NDArray[Any]) -> None:
        """Count one more."""
        if document.answered is None:
            return
        n_new = len(ids) - document.answered.n_prompt
        self.n_answers += 1
        self.n_cut += len(ids) == self.context and n_new < self.max_new_tokens and int(ids[-1]) not in self.ends

    def conclude(self, corpus: str, n_documents: int) -> Iterator[str]:
        """The sentence that says so, where there are any."""
        if self.n_cut:
            yield (
                f"{self.n_cut:,} of {self.n_answers:,} answers end where the window of {self.context:,} tokens does, before "
                f"{self.max_new_tokens:,} tokens. Raise `context`, where the model reads more."
            )
