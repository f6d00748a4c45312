"""CRC-32C, as it is defined: one bit after another."""

POLYNOMIAL = 0x82F63B78
"""Of Castagnoli; the coefficient of the lowest power in the highest bit."""


def extend(crc: int, data: bytes) -> int:
    """The CRC-32C of what had `crc` so far, followed by `data`."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
