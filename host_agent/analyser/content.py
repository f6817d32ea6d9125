"""How random a block is, and what that makes suspect. Pure functions over bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: A block that is judged, bytes: what file systems write at a time.
BLOCK_BYTES = 4096
#: Above this Shannon entropy, bits a byte, a block of 4 KiB is compressed or encrypted.
RANDOM_ENTROPY = 7.9
#: Chi-square of 256 counts against even ones: ciphertext has 255 +- 23; deflate lies above.
CIPHER_CHI_SQUARE = 330.0


@dataclass(frozen=True)
class Randomness:
    """Entropy in bits a byte, and the chi-square statistic of the byte counts."""

    entropy: float
    chi_square: float

    @property
    def looks_encrypted(self) -> bool:
        """As random as ciphertext. One block proves nothing: well compressed data may look so."""
        return self.entropy >= RANDOM_ENTROPY and self.chi_square <= CIPHER_CHI_SQUARE


def judge(block: bytes | memoryview) -> Randomness:
    """How random `block` is."""
    counts = np.bincount(np.frombuffer(block, np.uint8), minlength=256).astype(np.float64)
    total = counts.sum()
    if not total:
        return Randomness(0.0, 0.0)
    shares = counts[counts > 0] / total
    expected = total / 256
    return Randomness(
        float(-(shares * np.log2(shares)).sum()),
        float(((counts - expected) ** 2).sum() / expected),
    )
