"""Small tokenizers of every class of transformers, made from texts here: vocabularies of all models, files of slow classes.

Not a test module.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = ("hat", "LAGVSERT", "h a t", "東京")
TEXTS = (
    "the quick brown fox doesn't jump over the lazy dog, and that is that.",
    "naïve café über öl đem señor",
    "call me at 12 345, x-y!",
    "die katze walks and talks walking quickly",
    "東京 中国 hat",
)
WORDS = [
    *{word: None for text in TEXTS for word in text.replace(",", " ,").replace(".", " .").replace("!", " !").split()}
]
CHARACTERS = sorted({c for text in TEXTS for c in text if not c.isspace()})


@cache
def byte_level_bpe(suffix: str = "") -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces and merges of GPT-2's kind; `suffix` marks the end of a word, as in CLIP."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if suffix:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), tokenizer.pre_tokenizer])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, show_progress=False, end_of_word_suffix=suffix
    )
    vocabulary, merges = _trained(tokenizer, trainer)
    return _numbered([*vocabulary, *(c + suffix for c in alphabet)]), merges


@cache
def metaspace_bpe(*, byte_fallback: bool = True) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces and merges of Llama 2's kind; one character is spelled by its bytes where there are pieces for them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    vocabulary, merges = _trained(tokenizer, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    if not byte_fallback:
        return vocabulary, merges
    kept = [piece for piece in vocabulary if "東" not in piece]
    merges = [pair for pair in merges if "東" not in "".join(pair)]
    return _numbered([*(f"<0x{byte:02X}>" for byte in range(256)), *kept]), merges


@cache
def suffix_bpe(suffix: str = "</w>") -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces and merges of GPT-1's kind: characters, `</w>` at the end of words."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, end_of_word_suffix=suffix)
    vocabulary, merges = _trained(tokenizer, trainer)
    pieces = dict.fromkeys([*vocabulary, *CHARACTERS, *(c + suffix for c in CHARACTERS)])
    return _numbered([*pieces]), merges


def _trained(tokenizer: Tokenizer, trainer: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return state["vocab"], [tuple(pair) for pair in state["merges"]]


def wordpieces(prefix: str = "##") -> list[str]:
    """Whole words, and all characters alone and behind the mark of what continues a word."""
    own = [word.lower() for word in WORDS if word.isalpha() and word not in ("walking", "quickly")]
    ends = [prefix + end for end in ("ing", "ly", "s", *CHARACTERS)]
    return list(dict.fromkeys([*own, *CHARACTERS, *ends, *"aeounc"]))


def unigrams() -> list[tuple[str, float]]:
    """Pieces of SentencePiece's unigram kind with their scores."""
    words = [f"▁{word.lower()}" for word in WORDS if word.isalpha()]
    pieces = dict.fromkeys(["▁", *words, *CHARACTERS, "ing", "▁walk"])
    return [(piece, -1.0 - (len(piece) == 1) * 8) for piece in pieces]


@cache
def sentencepiece_model(kind: str = "unigram", *, byte_fallback: bool = False) -> bytes:
    """A model of the library sentencepiece."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_writer=stream, vocab_size=400 if byte_fallback else 100, model_type=kind,
        hard_vocab_limit=False, byte_fallback=byte_fallback, character_coverage=0.98 if byte_fallback else 1.0,
        minloglevel=2, pad_id=3,
    )  # fmt: skip
    return stream.getvalue()


def classes() -> dict[str, type[Any]]:
    """Every class of a tokenizer in transformers, by name."""
    found: dict[str, type[Any]] = {"PreTrainedTokenizerFast": PreTrainedTokenizerFast}
    root = Path(transformers.__file__).parent / "models"
    for path in sorted(root.glob("*/tokenization_*.py")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        except (ImportError, NameError):  # a library is missing
            continue
        for name, kind in vars(module).items():
            own = (
                isinstance(kind, type)
                and issubclass(kind, PreTrainedTokenizerBase)
                and kind.__module__ == module.__name__
            )
            if own and kind not in found.values():
                found[name] = kind
    return found


def build(name: str, kind: type[Any], folder: Path) -> Any:
    """A tokenizer of a class; raises whatever the class raises where it cannot be made of these vocabularies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in FROM_FILES:
            return kind(**FROM_FILES[name](folder))
        if "vocab" in inspect.signature(kind.__init__).parameters or hasattr(kind, "model"):
            return _from_vocabulary(kind)
        return kind()


def _from_vocabulary(kind: type[Any]) -> Any:
    """Of a class that takes its vocabulary in memory, in the form of the one that it makes up without."""
    extra: dict[str, Any] = (
        {"tags_dict": {"a": 0}} if "tags_dict" in inspect.signature(kind.__init__).parameters else {}
    )
    try:
        state = json.loads(kind(**extra)._tokenizer.to_str())
    except Exception:
        state = {"model": {"type": kind.model.__name__}, "decoder": None, "added_tokens": []}
    special = [item["content"] for item in state["added_tokens"]]
    model = state["model"]["type"]
    if model == "Unigram":
        fresh = [(piece, score) for piece, score in unigrams() if piece not in special]
        return kind(vocab=[*((piece, 0.0) for piece in [*dict.fromkeys([*special, "<unk>"])]), *fresh], **extra)
    if model == "WordPiece":
        pieces = dict.fromkeys([*special, "[UNK]", "<unk>", *wordpieces()])
        return kind(vocab={piece: i for i, piece in enumerate(pieces)}, **extra)
    said = json.dumps(state)
    suffix = state["model"].get("end_of_word_suffix") or ""
    byte_level = '"ByteLevel"' in said
    if byte_level:
        vocabulary, merges = byte_level_bpe(suffix)
    elif suffix:
        vocabulary, merges = suffix_bpe()
    else:
        vocabulary, merges = metaspace_bpe(byte_fallback=bool(state["model"].get("byte_fallback")))
    pieces = [*dict.fromkeys([*special, *vocabulary])]
    return kind(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, **extra)


def _text(folder: Path, name: str, lines: list[str]) -> str:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def _json(folder: Path, name: str, value: Any) -> str:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return str(folder / name)


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def _sentencepiece(key: str = "vocab_file", **options: Any) -> Callable[[Path], dict[str, Any]]:
    def files(folder: Path) -> dict[str, Any]:
        path = folder / "spiece.model"
        path.write_bytes(sentencepiece_model(**options))
        return {key: str(path)}

    return files


def _merged(
    special: list[str], mark: str, joint: str = "", header: str = "#version: 0.2", **keys: str
) -> Callable[[Path], dict[str, Any]]:
    """Files of byte-pair merges as the classes of Python read them; `joint` marks that a piece goes on (`@@`)."""

    def files(folder: Path) -> dict[str, Any]:
        vocabulary, merges = suffix_bpe()
        pieces = special + [(p.removesuffix("</w>") + mark if p.endswith("</w>") else p + joint) for p in vocabulary]
        lines = [header, *(" ".join(pair) for pair in merges), ""] if header else [f"{a} {b} 1" for a, b in merges]
        vocab = {keys.get("vocab", "vocab_file"): _json(folder, "vocab.json", _numbered(pieces))}
        if "vocab" not in keys and keys.get("form") == "text":
            vocab = {"vocab_file": _text(folder, "vocab.txt", [f"{p} 1" for p in pieces if p not in special])}
        return vocab | {"merges_file": _text(folder, "merges.txt", lines)}

    return files


def _wordpiece_file(folder: Path, special: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")) -> str:
    return _text(folder, "vocab.txt", [*special, *wordpieces()])


def _letters(special: list[str], **more: Any) -> Callable[[Path], dict[str, Any]]:
    letters = [c for c in CHARACTERS if c not in "'-"]
    return lambda folder: {"vocab_file": _json(folder, "vocab.json", _numbered([*special, *letters, "'", "-"]))} | more


def _marian(folder: Path) -> dict[str, Any]:
    files = _sentencepiece()(folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=files["vocab_file"])
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    return {
        "vocab": _json(folder, "vocab.json", _numbered(["</s>", "<unk>", *pieces, "<pad>"])),
        "source_spm": files["vocab_file"],
        "target_spm": files["vocab_file"],
    }


def _with_vocabulary(special: list[str], key: str = "spm_file") -> Callable[[Path], dict[str, Any]]:
    def files(folder: Path) -> dict[str, Any]:
        path = _sentencepiece()(folder)["vocab_file"]
        processor = sentencepiece.SentencePieceProcessor(model_file=path)
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
        return {"vocab_file": _json(folder, "vocab.json", _numbered([*special, *pieces])), key: path}

    return files


def _japanese(folder: Path) -> dict[str, Any]:
    pieces = [*CHARACTERS, *WORDS, "<SP>", "<BR>", *(f"<|byte{b}|>" for b in range(256)), "<|endoftext|>"]
    lines = _text(folder, "vocab.txt", list(dict.fromkeys(pieces)))
    return {"vocab_file": lines, "emoji_file": _json(folder, "emoji.json", {"emoji": {}, "emoji_inv": {}})}


def _roc(folder: Path) -> dict[str, Any]:
    path = _wordpiece_file(folder)
    entries = Path(path).read_text(encoding="utf-8").split()
    return {
        "vocab_file": path,
        "word_shape_file": _json(folder, "shape.json", _numbered(entries)),
        "word_pronunciation_file": _json(folder, "sound.json", _numbered(entries)),
    }


def _myt5(folder: Path) -> dict[str, Any]:
    maps = {"decompose_map": {}, "merge_map": {}}
    return {"vocab_file": _json(folder, "byte_maps.json", maps)}


def _fsmt(folder: Path) -> dict[str, Any]:
    """Of a class that reads texts by one vocabulary and ids by another."""
    files = _merged(["<s>", "<pad>", "</s>", "<unk>"], "</w>", header="")(folder)
    pieces = json.loads(Path(files["vocab_file"]).read_text(encoding="utf-8"))
    target = _json(folder, "target.json", _numbered(["<s>", "<pad>", "</s>", "<unk>", *reversed(pieces)]))
    named = {"src_vocab_file": files["vocab_file"], "tgt_vocab_file": target, "merges_file": files["merges_file"]}
    return {"langs": ["en", "de"]} | named


def _prophet(folder: Path) -> dict[str, Any]:
    return {"vocab_file": _wordpiece_file(folder, ("[PAD]", "[UNK]", "[SEP]", "[MASK]", "[X_SEP]"))}


def _protein(folder: Path) -> dict[str, Any]:
    pieces = ["<cls>", "<pad>", "<eos>", "<unk>", *CHARACTERS, "<mask>"]
    return {"vocab_file": _text(folder, "vocab.txt", pieces)}


def _clvp(folder: Path) -> dict[str, Any]:
    vocabulary, merges = byte_level_bpe()
    pieces = ["[UNK]", "<|endoftext|>", "[STOP]", "[SPACE]", *vocabulary]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    return {"vocab_file": _json(folder, "vocab.json", _numbered(pieces)), "merges_file": _text(folder, "m.txt", lines)}


def _bartpho(folder: Path) -> dict[str, Any]:
    path = _sentencepiece()(folder)["vocab_file"]
    processor = sentencepiece.SentencePieceProcessor(model_file=path)
    pieces = [processor.id_to_piece(i) for i in range(4, processor.get_piece_size())]
    return {"vocab_file": path, "monolingual_vocab_file": _text(folder, "dict.txt", [f"{p} 1" for p in pieces])}


PEGASUS = ("<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk>")
FROM_FILES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "PreTrainedTokenizerFast": lambda folder: {"tokenizer_object": word_level(), "unk_token": "[UNK]"},
    "ParakeetTokenizer": lambda folder: {"tokenizer_object": metaspace_unigram(), "unk_token": "<unk>"},
    "BertTokenizerLegacy": lambda folder: {"vocab_file": _wordpiece_file(folder)},
    "ProphetNetTokenizer": _prophet,
    "RoCBertTokenizer": _roc,
    "BertJapaneseTokenizer": lambda folder: {"vocab_file": _wordpiece_file(folder), "word_tokenizer_type": "basic"},
    "TapasTokenizer": lambda folder: {"vocab_file": _wordpiece_file(folder)},
    "BertGenerationTokenizer": _sentencepiece(), "SiglipTokenizer": _sentencepiece(),
    "PLBartTokenizer": _sentencepiece(), "SpeechT5Tokenizer": _sentencepiece(kind="char"),
    "GPTSw3Tokenizer": _sentencepiece(kind="bpe", byte_fallback=True), "BartphoTokenizer": _bartpho,
    "CpmTokenizer": _sentencepiece(), "CpmTokenizerFast": _sentencepiece(),
    "M2M100Tokenizer": _with_vocabulary(["<s>", "<pad>", "</s>", "<unk>"]),
    "Speech2TextTokenizer": _with_vocabulary(["<s>", "<pad>", "</s>", "<unk>"]),
    "MarianTokenizer": _marian,
    "CTRLTokenizer": _merged(["<unk>"], "", "@@"),
    "BertweetTokenizer": _merged([], "", "@@", "", form="text"), "PhobertTokenizer": _merged([], "", "@@", "", form="text"),
    "BlenderbotSmallTokenizer": _merged(["__start__", "__end__", "__unk__", "__null__"], "", "@@"),
    "XLMTokenizer": _merged(["<s>", "</s>", "<pad>", "<unk>"], "</w>"),
    "FlaubertTokenizer": _merged(["<s>", "</s>", "<pad>", "<unk>"], "</w>"),
    "BioGptTokenizer": _merged(["<s>", "<pad>", "</s>", "<unk>"], "</w>"),
    "PegasusTokenizer": lambda folder: {"vocab": [*((p, 0.0) for p in PEGASUS), *unigrams()]},
    "FSMTTokenizer": _fsmt,
    "ClvpTokenizer": _clvp, "GPTNeoXJapaneseTokenizer": _japanese, "MyT5Tokenizer": _myt5,
    "EsmTokenizer": _protein,
    "MgpstrTokenizer": _letters(["[GO]", "[s]"]),
    "Wav2Vec2CTCTokenizer": _letters(["<pad>", "<s>", "</s>", "<unk>", "|"]),
    "Wav2Vec2PhonemeCTCTokenizer": _letters(["<pad>", "<s>", "</s>", "<unk>", "|"], do_phonemize=False),
    "VitsTokenizer": _letters(["_", " ", "<unk>"], normalize=False, phonemize=False),
    "FastSpeech2ConformerTokenizer": _letters(["<unk>", "<sos/eos>"]),
}  # fmt: skip
"""Classes that say little of what they are made from, and their arguments, whose files are written into a folder."""


def metaspace_unigram() -> Tokenizer:
    """A unigram model with the mark of SentencePiece for spaces."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *unigrams()], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_level(*, characters: bool = False) -> Tokenizer:
    """Whole words, or single characters as of proteins, each with a number."""
    pieces = [c for c in CHARACTERS if c.isalpha()] if characters else WORDS
    tokenizer = Tokenizer(models.WordLevel(_numbered(["[UNK]", *pieces]), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated") if characters else pre_tokenizers.Whitespace()
    return tokenizer
