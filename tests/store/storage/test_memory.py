"""The memory of this process keeps the contract of storages."""

from __future__ import annotations

import uuid

import pytest
from storage_contract import StorageContract

from actstore.store.storage.memory import MemoryStorage


class TestMemory(StorageContract):
    storage = MemoryStorage
    is_shared = False

    @pytest.fixture
    def location(self) -> str:
        return f"memory://{uuid.uuid4()}/store"
