"""What of a site can be left out."""

from __future__ import annotations

from typing import Final

PARTS: Final = {
    "others": "excerpts where neurons are lowest, and at random tokens",
    "similar": "neurons with similar graphs",
    "coactive": "neurons that fire together",
    "maps": "activations over images, and the images",
}
"""What can be left out of a site → what it is."""
