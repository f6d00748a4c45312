"""A real S3 server keeps the contract of storages."""

from __future__ import annotations

import pytest
from storage_contract import StorageContract

from actstore.store.storage.objects.storage import ObjectStorage


class TestObjects(StorageContract):
    storage = ObjectStorage

    @pytest.fixture
    def location(self, s3_location: str) -> str:
        return s3_location
