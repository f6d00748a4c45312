"""Chromium, for tests of what people look at in a browser."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright; where either is missing, the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: `make test-browser` installs it")
    if CHROMIUM is None:
        pytest.skip("no browser: `apt-get install chromium`")
    with playwright.sync_playwright() as driver:
        # As root, in a container, Chromium starts without its sandbox alone.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
