"""`python demo/explorer_picture.py STORE NEURON PICTURE`: a neuron in the explorer, light and dark side by side, as PNG.

Needs Playwright and Chromium, as `make test-browser` does. docs/pictures/explorer.png is made by it.
"""

from __future__ import annotations

import io
import shutil
import sys
import threading
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from actstore.explorer.server.app import application
from actstore.explorer.server.shelf import Shelf

WIDTH, HEIGHT = 1100, 720


def main() -> None:
    """Serve the store, and take both pictures."""
    store, neuron, target = sys.argv[1:]
    configuration = uvicorn.Config(application(Shelf([store]), ["127.0.0.1"]), port=0, log_level="error", ws="none")
    server = uvicorn.Server(configuration)
    threading.Thread(target=server.run, daemon=True).start()
    pictures = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": WIDTH, "height": HEIGHT})
            port = server.servers[0].sockets[0].getsockname()[1]
            page.goto(f"http://127.0.0.1:{port}/#/0/neuron/corpus/mlp.post/{neuron}")
            page.locator("main h1").wait_for()
            page.wait_for_selector(".loading, [aria-busy=true]", state="detached")
            pictures.append(Image.open(io.BytesIO(page.screenshot())))
        browser.close()
    server.should_exit = True
    both = Image.new("RGB", (2 * WIDTH, HEIGHT))
    for i, picture in enumerate(pictures):
        both.paste(picture, (i * WIDTH, 0))
    both.quantize(128).save(Path(target), optimize=True)


if __name__ == "__main__":
    main()
