"""`python demo/explorer_pictures.py TEXT IMAGES QUESTIONS`: the explorer, light and dark side by side, into docs/pictures.

Needs Playwright and Chromium, as `make test-browser` does. The stores are one of text with neuron graphs, such as that of
`make demo`, one of images whose files are there, and one of questions (docs/tutorials).
"""

from __future__ import annotations

import io
import shutil
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from actstore.explorer.server.app import application
from actstore.explorer.server.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Iterator

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
WIDTH, HEIGHT = 1100, 720
MAX_BYTES = 100_000

SQL = "select name, max, std, positive from neurons order by (max - mean) / std desc limit 12".replace(" ", "%20")
PAGES = {
    "explorer.png": "#/0/neuron/corpus/mlp.post/L3.N17",
    "explorer-neurons.webp": "#/0/overview/corpus/mlp.post",
    "explorer-images.webp": "#/1/neuron/corpus/mlp.post/L2.N61",
    "explorer-text.webp": "#/0/text/corpus/mlp.post/3?neurons=L3.N17,L2.N17&start=2000",
    "explorer-token.webp": "#/0/token/corpus/mlp.post/389",
    "explorer-questions.webp": "#/2/question/questions/mlp.post?by=relation_name",
    "explorer-sql.webp": f"#/0/sql/corpus/mlp.post?query={SQL}",
}
"""Name of a picture → what it shows; stores are numbered as they are given."""


@contextmanager
def serving(stores: list[str]) -> Iterator[str]:
    """The address of the explorer of some stores."""
    configuration = uvicorn.Config(application(Shelf(stores), ["127.0.0.1"]), port=0, log_level="error", ws="none")
    server = uvicorn.Server(configuration)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


def picture_of(browser: Any, address: str) -> Image.Image:
    """A page in light and in dark, side by side."""
    both = Image.new("RGB", (2 * WIDTH, HEIGHT))
    for place, scheme in enumerate(("light", "dark")):
        page = browser.new_page(color_scheme=scheme, viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(address)
        page.locator("main h1").wait_for()
        page.wait_for_selector(".loading, [aria-busy=true]", state="detached")
        page.wait_for_timeout(300)  # images of the page
        both.paste(Image.open(io.BytesIO(page.screenshot())), (place * WIDTH, 0))
        page.close()
    return both


def save(picture: Image.Image, path: Path) -> None:
    """As small as it must be: PNG of fewer colours, or WebP of lower quality."""
    settings = (
        [{"colors": 128}, {"colors": 64}, {"colors": 32}]
        if path.suffix == ".png"
        else [{"quality": 80}, {"quality": 60}, {"quality": 40}]
    )
    for one in settings:
        out = io.BytesIO()
        if path.suffix == ".png":
            picture.quantize(one["colors"]).save(out, "PNG", optimize=True)
        else:
            picture.save(out, "WEBP", method=6, **one)
        if out.tell() <= MAX_BYTES:
            break
    path.write_bytes(out.getvalue())
    print(f"{path.name}: {out.tell():,} bytes")


def main() -> None:
    """Serve the stores, and take the pictures."""
    with serving(sys.argv[1:]) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, route in PAGES.items():
            if int(route.split("/")[1]) < len(sys.argv) - 1:
                save(picture_of(browser, url + route), PICTURES / name)
        browser.close()


if __name__ == "__main__":
    main()
