"""Images in: every form they come in, as the same picture; and what cannot be one, named."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actstore.engine.inputs import image_files
from actstore.engine.inputs.image_files import ImageError, ImageFile, decode
from actstore.engine.inputs.images import ImageDigest, ImageOptions, find_images, read_images
from actstore.store.errors import InvalidInputError, NotFoundError

PIXELS = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def opened(content: bytes) -> np.ndarray[Any, Any]:
    image = ImageFile("a.png", content=content).open()
    assert image.mode == "RGB"
    return np.asarray(image)


PICTURE = Image.fromarray(PIXELS)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))


# Tables of images


def test_tables_of_images_in_csv_and_compressed(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("image,caption,kind\na.png,a picture,x\n,,\n")
    line = json.dumps({"image": "a.png", "caption": "a picture", "kind": "x"}).encode()
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(line))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    for name in ("t.csv", "t.jsonl.gz", "t.csv.gz"):
        path = tmp_path / name
        assert find_images(path) == "only"
        first, *others = read_images(path, ImageOptions(label_columns=("kind",)))
        assert (first.caption, first.labels, first.image.path) == ("a picture", {"kind": "x"}, tmp_path / "a.png")
        for empty in others:
            assert (empty.caption, empty.labels, empty.image.path) == (None, {"kind": ""}, None)
    (tmp_path / "t.csv").write_text("image,text\na.png,text\n")
    assert find_images(tmp_path / "t.csv", None, ("text",)) == "some"


def test_a_list_in_csv_says_what_a_folder_holds_and_other_csv_does_not(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        PICTURE.save(tmp_path / name)
    (tmp_path / "sizes.csv").write_text("width\n3\n")
    assert [document.image.name for document in read_images(tmp_path)] == [f"{tmp_path}/a.png", f"{tmp_path}/b.png"]
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.png,the second\n")
    [document] = read_images(tmp_path)
    assert (document.image.name, document.caption) == (f"{tmp_path}/b.png", "the second")


def test_tables_that_cannot_be_read_compressed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(InvalidInputError, match="is neither an image nor a table of images"):
        list(read_images(path))


# What is in a file


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_lossless_forms_give_the_pixels(form: str, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(opened(encoded(PICTURE, form, **options)), PIXELS)


def test_jpeg_gives_nearly_the_pixels() -> None:
    smooth = Image.fromarray(np.full((16, 16, 3), 100, np.uint8))
    assert np.abs(opened(encoded(smooth, "JPEG")).astype(int) - 100).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = Image.fromarray(np.kron(np.arange(6, dtype=np.uint8).reshape(3, 2, 1) * 40, np.ones((8, 8, 3), np.uint8)))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what turns an upright picture into the one that is stored
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(opened(encoded(stored, "PNG", exif=exif)), np.asarray(upright))


def test_grey_palette_and_bilevel_become_rgb() -> None:
    grey = PIXELS[..., 0]
    np.testing.assert_array_equal(opened(encoded(Image.fromarray(grey))), np.repeat(grey[..., None], 3, axis=2))
    palette = PICTURE.convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(opened(encoded(palette)), np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(np.eye(4, dtype=bool))
    np.testing.assert_array_equal(opened(encoded(bilevel))[..., 0], 255 * np.eye(4, dtype=np.uint8))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.array([[0, 257, 257 * 100, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(opened(encoded(Image.fromarray(deep), form))[0, :, 0], [0, 1, 100, 255])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = PICTURE.convert(mode)
    image.putalpha(0)
    assert (opened(encoded(image)) == 255).all()
    image.putalpha(255)
    np.testing.assert_array_equal(opened(encoded(image)), np.asarray(image.convert("RGB")))


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (2, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1, 0, 1])
    found = opened(encoded(image, transparency=0))
    np.testing.assert_array_equal(found[0], [[255, 255, 255], [200, 100, 50]])


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken_and_said(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    content = encoded(
        frames[0], form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})
    )
    image, n_frames = decode(content, "a")
    assert n_frames == 3
    assert image.getpixel((3, 3)) == (255, 0, 0)
    assert decode(encoded(PICTURE), "a")[1] == 1


# What is not an image


def bomb() -> bytes:
    """A PNG of a hundred bytes that says it has 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"a text", r"is not an image that can be read \(PNG, JPEG"),
        (encoded(NOISE)[:2000], "is damaged"),
        (encoded(NOISE, "JPEG")[:700], r"is damaged \(.*truncated"),
        (encoded(PICTURE)[:-30] + bytes(30), "is damaged"),
        (bomb(), "is too large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image that can be read"),
        (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "has floating-point grey"),
    ],
)  # fmt: skip
def test_a_broken_image_is_named_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=rf"^x/012\.png {reason}") as caught:
        ImageFile("x/012.png", content=content).open()
    assert caught.value.source == "x/012.png"


def test_an_image_above_the_bound_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 23)
    with pytest.raises(ImageError, match=r"^a is too large \(4 × 6 pixels; at most 23 in all\)\.$"):
        decode(encoded(PICTURE), "a")


def test_a_file_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    missing = ImageFile("m", path=tmp_path / "missing.png")
    with pytest.raises(ImageError, match=r"^m cannot be read \(No such file or directory\)\.$"):
        missing.open()
    assert missing.sha256 == ""
    with pytest.raises(ImageError, match=r"cannot be read \(Is a directory\)"):
        ImageFile("d", path=tmp_path).open()
    with pytest.raises(ImageError, match=r"^n names no image\.$"):
        ImageFile("n").open()
    with pytest.raises(ImageError, match="cannot be read"):
        ImageFile("z", path=Path("a\0b")).open()


# Where images come from


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in a folder and a sub-folder, among other things."""
    for i, name in enumerate(
        ("b.png", "a.JPG", "cats/c.webp", "cats/d.png", ".hidden.png", "notes.md", "cats/Thumbs.db")
    ):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {"JPG": "JPEG", "webp": "WEBP", "png": "PNG"}.get(name.rpartition(".")[2])
        path.write_bytes(encoded(Image.new("RGB", (4, 4), (i, i, i)), kind) if kind else b"\0no image")
    return tmp_path / "pictures"


def names(location: Path, **options: Any) -> list[str]:
    return [Path(d.source).name for d in read_images(location, ImageOptions(**options))]


def test_a_folder_gives_its_images_by_path(folder: Path) -> None:
    found = list(read_images(folder, ImageOptions(label_columns=("folder",))))
    assert [d.source for d in found] == [str(folder / n) for n in ("a.JPG", "b.png", "cats/c.webp", "cats/d.png")]
    assert [d.labels["folder"] for d in found] == ["", "", "cats", "cats"]
    assert {(d.prompt, d.caption) for d in found} == {(None, None)}
    assert names(folder, pattern="*.png") == ["b.png", "d.png"]
    assert names(folder, max_documents=2) == ["a.JPG", "b.png"]
    assert names(folder / "b.png") == ["b.png"]
    assert [Path(d.source).name for d in read_images(f"{folder}/*/*.png")] == ["d.png"]


@pytest.mark.parametrize("name", ["images.jsonl", "metadata.jsonl"])
def test_a_list_says_which_images_a_folder_holds(folder: Path, name: str) -> None:
    column = "image" if name == "images.jsonl" else "file_name"
    rows = [
        {column: "cats/c.webp", "prompt": "What?", "caption": "a cat", "colour": "grey", "n": 2},
        {column: "b.png", "caption": None},
    ]
    (folder / name).write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    first, second = read_images(folder, ImageOptions(label_columns=("colour", "n")))
    assert first.source == f"{folder / name}:1"
    assert second.source == f"{folder / name}:3"
    assert (first.prompt, first.caption, first.labels) == ("What?", "a cat", {"colour": "grey", "n": "2"})
    assert (second.prompt, second.caption, second.labels) == (None, None, {"colour": "", "n": ""})
    assert first.image.open().getpixel((0, 0)) == (2, 2, 2)
    assert first.image.name == str(folder / "cats/c.webp")


def test_a_text_beside_a_file_name_is_its_caption(folder: Path) -> None:
    rows = [
        {"file_name": "b.png", "text": "as datasets have it"},
        {"file_name": "b.png", "text": "no", "caption": "yes"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [d.caption for d in read_images(folder)] == ["as datasets have it", "yes"]
    (folder / "metadata.jsonl").write_text('{"image": "b.png", "text": "no caption here"}')
    assert [d.caption for d in read_images(folder)] == [None]
    assert [d.caption for d in read_images(folder, ImageOptions(caption_column="text"))] == ["no caption here"]


def write_parquet(path: Path, images: list[Any], kind: pa.DataType, **columns: Any) -> Path:
    pq.write_table(pa.table({"image": pa.array(images, kind), **columns}), path)
    return path


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_parquet_with_bytes_or_paths_as_datasets_writes_them(folder: Path) -> None:
    content = encoded(PICTURE)
    path = write_parquet(
        folder / "t.parquet",
        [{"bytes": content, "path": "x.png"}, {"bytes": None, "path": "b.png"}, None],
        STRUCT,
        caption=["one", "two", "three"],
    )
    one, two, three = read_images(path)
    assert one.source == f"{path}:0"
    assert (one.image.name, one.caption) == ("x.png", "one")
    np.testing.assert_array_equal(np.asarray(one.image.open()), PIXELS)
    assert two.image.open().getpixel((0, 0)) == (0, 0, 0)
    with pytest.raises(ImageError, match=r"t\.parquet:2 names no image"):
        three.image.open()
    for kind, values in ((pa.binary(), [content]), (pa.string(), ["b.png"])):
        (found,) = read_images(write_parquet(folder / "u.parquet", values, kind))
        found.image.open()


def test_many_rows_of_parquet_come_in_order(tmp_path: Path) -> None:
    contents = [encoded(Image.new("L", (1, 1), i)) for i in range(100)]
    path = write_parquet(tmp_path / "many.parquet", contents, pa.binary())
    found = list(read_images(path))
    assert [np.asarray(d.image.open())[0, 0, 0] for d in found] == list(range(100))
    assert [d.source.rpartition(":")[2] for d in found] == [str(i) for i in range(100)]


def test_a_saved_dataset(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([{"bytes": encoded(PICTURE), "path": None}] * 40, STRUCT), "k": ["x"] * 40})
    for split in ("train", "test"):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        with pa.OSFile(str(folder / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    found = list(read_images(tmp_path / "saved", ImageOptions(label_columns=("k",))))
    assert len(found) == 80
    assert {(d.labels["k"], d.labels["split"]) for d in found} == {("x", "train"), ("x", "test")}
    np.testing.assert_array_equal(np.asarray(found[79].image.open()), PIXELS)
    assert find_images(tmp_path / "saved") == "only"


def test_the_digest_knows_images_prompts_captions_and_labels_not_places(folder: Path, tmp_path: Path) -> None:
    def digest(location: Path, *labels: str) -> str:
        made = ImageDigest()
        for document in read_images(location, ImageOptions(label_columns=labels)):
            made.update(document)
        return made.hexdigest()

    def listed(row: dict[str, Any]) -> Path:
        (folder / "images.jsonl").write_text(json.dumps({"image": "b.png"} | row))
        return folder

    whole = digest(folder)
    folder = folder.rename(tmp_path / "moved")
    assert digest(folder) == whole
    base = digest(listed({}))
    made = {
        digest(listed(row)) for row in ({"prompt": "p"}, {"caption": "p"}, {"image": "a.JPG"}, {"image": "gone.png"})
    }
    assert len(made | {base, whole}) == 6
    assert digest(listed({"c": "x"}), "c") != digest(listed({"c": "y"}), "c")


# What is refused


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "https://example.org/a.png"}', r"images\.jsonl:2 names its image by a URL \(https://example"),
        ('{"image": "data:image/png;base64,AA"}', "by a URL"),
        (
            '{"image": 7}',
            r":2: column 'image' must hold a path, or an image's bytes, found an integer \(7\).*`image_column`",
        ),
        ('{"picture": "b.png"}', r":2 has no column 'image' with an image: its columns are 'picture'.*`image_column`"),
        (
            '{"image": "b.png", "caption": ["a", "b"]}',
            r":2: column 'caption' must hold text, found a list.*`caption_column`",
        ),
        ('{"image": "b.png", "prompt": 5}', "`prompt_column`"),
        ('{"image": ', r"images\.jsonl:2 is not valid JSON"),
        ("[1]", r":2 holds a list: expected one object on each line"),
    ],
)
def test_a_wrong_record_is_named(folder: Path, line: str, message: str) -> None:
    (folder / "images.jsonl").write_text('{"image": "b.png"}\n' + line)
    with pytest.raises(InvalidInputError, match=message):
        list(read_images(folder))


def test_nothing_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no file or folder"):
        list(read_images(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="empty holds no images"):
        list(read_images(tmp_path / "empty"))
    with pytest.raises(InvalidInputError, match=r"neither an image nor a table"):
        list(read_images(folder / "notes.md"))
    with pytest.raises(InvalidInputError, match="has no label column 'kind'"):
        list(read_images(folder, ImageOptions(label_columns=("kind",))))
    (folder / "images.jsonl").write_text('{"image": "b.png", "caption": "one"}')
    for kind in ("prompt", "caption"):
        with pytest.raises(InvalidInputError, match=rf"no column 'x' with {kind}s: .*'caption'. Check `{kind}_column`"):
            list(read_images(folder, ImageOptions(**{f"{kind}_column": "x"})))
    (folder / "x.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InvalidInputError, match=r"x\.parquet is not readable as a table"):
        list(read_images(folder / "x.parquet"))
    with pytest.raises(InvalidInputError, match="`max_documents` is at least 1, found 0"):
        ImageOptions(max_documents=0)


# Images or text


def test_what_a_location_holds(folder: Path, tmp_path: Path) -> None:
    def file(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    assert find_images(folder) == "some", "there are notes beside the images"
    assert find_images(folder, ImageOptions(pattern="*.png")) == "only"
    assert find_images(folder, ImageOptions(pattern="*.md")) == "none"
    assert find_images(folder / "b.png") == "only"
    assert find_images(folder / "notes.md") == "none"
    assert find_images("-") == "none"
    assert find_images(file("a.jsonl", '{"image": "a.png"}')) == "only"
    assert find_images(file("b.jsonl", '{"image": "a.png", "text": "t"}'), text_columns=("text",)) == "some"
    assert find_images(file("c.jsonl", '{"text": "t"}')) == "none"
    assert find_images(file("d.jsonl", "no JSON")) == "none"
    assert find_images(file("e.jsonl", '{"img": "a.png"}'), ImageOptions(image_column="img")) == "only"
    with pytest.raises(NotFoundError):
        find_images(tmp_path / "nowhere")


def test_sources_are_text_whatever_the_file_is_called(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        with open(name, "wb") as file:
            file.write(encoded(PICTURE))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (document,) = read_images(tmp_path)
    document.source.encode()
    document.image.open()


def test_reading_opens_no_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bytes:
        raise AssertionError

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert len(list(read_images(folder))) == 4
    assert re.fullmatch(r"[^\0]*a\.JPG", next(read_images(folder)).image.name)
