"""Image maps of a neuron: what it does at each patch of the images on which it is highest."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from actstore.explorer.pages.numbers import short
from actstore.store.errors import NotFoundError

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

    from actstore.store.capture.reader import Capture
    from actstore.store.reader import Store

MAPS: Final = 6
_IS_THERE: Final[WeakKeyDictionary[Store, dict[tuple[str, int], bool]]] = WeakKeyDictionary()


def maps_page(store: Store, capture: str, site: str, name: str, /, *, k: int = MAPS) -> dict[str, Any]:
    """The images of a neuron's exemplars, each once, and its activation at each of their patches.

    `grids` are the patches' boxes (left, top, right, bottom as shares of the image); images of one shape have the same.
    """
    from actstore.engine.multimodal.patch_maps import NeuronSet, map_neurons

    neuron, opened = store.neuron(name), store.capture(capture)
    exemplars = neuron.exemplars(4 * k, capture, site, 0).to_pylist()
    documents = list(dict.fromkeys(row["document"] for row in exemplars))[:k]
    table = opened.documents().to_arrow()
    sets = {document: [NeuronSet([(neuron.layer, neuron.index)])] for document in documents}
    found = {document: patch_map for document, _, patch_map in map_neurons(opened, sets, site)}
    grids: dict[bytes, list[list[float]]] = {}
    maps = []
    for document in (document for document in documents if document in found):
        boxes = found[document].grid.box
        grids.setdefault(boxes.tobytes(), boxes.tolist())
        maps.append(
            {
                "document": document,
                "source": opened.document_source(document),
                "caption": table["caption"][document].as_py(),
                "image": has_image(store, opened, document),
                "width": found[document].width,
                "height": found[document].height,
                "grid": list(grids).index(boxes.tobytes()),
                "values": found[document].values.tolist(),
            }
        )
    return short({"maps": maps, "grids": list(grids.values())})


def has_image(store: Store, capture: Capture, document: int) -> bool:
    """Whether a document's image can be read; each is tried once while the store is open."""
    kept = _IS_THERE.setdefault(store, {})
    key = (capture.record.name, document)
    if key not in kept:
        kept[key] = _image(capture, capture.documents().to_arrow(), document)[0] is not None
    return kept[key]


def image_bytes(store: Store, capture: str, document: int, side: int = 512, form: str = "PNG") -> bytes:
    """A document's image, at most `side` pixels wide and high; `NotFoundError` where its file is not what it was."""
    opened = store.peek(capture)
    table = opened.documents().to_arrow()
    if not 0 <= document < table.num_rows or "image" not in table.column_names:
        raise NotFoundError(f"Capture {capture!r} has no image of document {document}.")
    image, reason = _image(opened, table, document)
    if image is None:
        raise NotFoundError(f"There is no image of document {document}: {reason}.")
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def image_page(store: Store, capture: str, document: int, /) -> dict[str, Any]:
    """The same as an address of data, for a page that may fetch nothing."""
    return {"image": f"data:image/png;base64,{base64.b64encode(image_bytes(store, capture, document)).decode()}"}


def _image(capture: Capture, table: pa.Table, document: int) -> tuple[Image | None, str]:
    """A document's image, or why it is not there."""
    from actstore.engine.multimodal.source_images import find_image

    (row,) = table.slice(document, 1).select(["image", "width", "height"]).to_pylist()
    return find_image(row["image"], capture.record.plan.corpus, (row["width"], row["height"]))
