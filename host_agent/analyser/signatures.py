"""What a piece of a disk shows: file systems, partition tables, volumes. Pure functions over bytes.

Each check looks at documented magic numbers and, where they are short, at fields beside them that
must make sense, so that noise is not mistaken for a file system. Sources: the on-disk format
descriptions of the Linux kernel's documentation (ext4, XFS, Btrfs, swap), the UEFI specification
(GPT), Microsoft's descriptions of FAT, exFAT and NTFS boot sectors, the LUKS and LVM2 headers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

#: Partitions begin at multiples of this on any machine of the last fifteen years; bytes.
ALIGNMENT = 1 << 20
#: What a look needs from the beginning of a volume, bytes (Btrfs: superblock at 64 KiB).
LOOK_BYTES = 65536 + 4096


@dataclass(frozen=True)
class Finding:
    """Something recognised: where the volume begins and where the evidence lies, bytes of the disk.

    `confidence` from 0 to 1; `system` is the operating system that it speaks for, if any.
    """

    kind: str
    volume: int
    evidence: int
    confidence: float
    system: str | None


@dataclass(frozen=True)
class _Check:
    kind: str
    at: int
    need: int
    test: Callable[[bytes], float]
    system: str | None


def _ext(block: bytes) -> tuple[str, float] | None:
    """ext2, ext3 or ext4 from the 1024 bytes of a superblock."""
    if block[56:58] != b"\x53\xef":
        return None
    log_size, state, errors = (
        struct.unpack_from("<I", block, 24)[0],
        *struct.unpack_from("<HH", block, 58),
    )
    revision = struct.unpack_from("<I", block, 76)[0]
    if log_size > 6 or state > 7 or errors > 3 or revision > 1:
        return None
    compatible, incompatible, read_only = struct.unpack_from("<III", block, 92)
    if incompatible & (0x40 | 0x80 | 0x200) or read_only & 0x78:
        return "ext4", 0.99
    return ("ext3", 0.97) if compatible & 4 else ("ext2", 0.95)


def _xfs(block: bytes) -> float:
    size, sector = struct.unpack_from(">I", block, 4)[0], struct.unpack_from(">H", block, 102)[0]
    return 0.99 if _is_power(size, 512, 65536) and _is_power(sector, 512, 32768) else 0.0


def _ntfs(block: bytes) -> float:
    size = struct.unpack_from("<H", block, 11)[0]
    return 0.99 if _is_power(size, 256, 4096) and block[510:512] == b"\x55\xaa" else 0.0


def _fat(block: bytes) -> float:
    size, spread = struct.unpack_from("<H", block, 11)[0], block[13]
    valid = (
        _is_power(size, 512, 4096) and _is_power(spread, 1, 128) and block[510:512] == b"\x55\xaa"
    )
    return 0.95 if valid else 0.0


def _gpt(block: bytes) -> float:
    revision, length = struct.unpack_from("<II", block, 8)
    return 0.99 if revision == 0x10000 and 92 <= length <= 512 else 0.0


def _is_power(value: int, low: int, high: int) -> bool:
    return low <= value <= high and value & (value - 1) == 0


def _sure(_block: bytes) -> float:
    return 0.95


_MAGICS: tuple[tuple[bytes, int, _Check], ...] = (
    (b"XFSB", 0, _Check("xfs", 0, 512, _xfs, "linux")),
    (b"NTFS    ", 3, _Check("ntfs", 0, 512, _ntfs, "windows")),
    (b"EXFAT   ", 3, _Check("exfat", 0, 512, _sure, None)),
    (b"FAT32   ", 82, _Check("fat32", 0, 512, _fat, None)),
    (b"FAT16   ", 54, _Check("fat16", 0, 512, _fat, None)),
    (b"LUKS\xba\xbe", 0, _Check("luks", 0, 512, _sure, "linux")),
    (b"LABELONE", 512, _Check("lvm2", 512, 512, _sure, "linux")),
    (b"SWAPSPACE2", 4086, _Check("swap", 4086, 10, _sure, "linux")),
    (b"_BHRfS_M", 65536 + 64, _Check("btrfs", 65536, 512, _sure, "linux")),
    (b"EFI PART", 512, _Check("gpt", 512, 512, _gpt, None)),
)


#: Where evidence lies: first byte, and the one behind the last, from a volume's beginning.
EVIDENCE = tuple(
    sorted({(check.at, check.at + check.need) for _, _, check in _MAGICS} | {(1024, 2048)})
)


def look(data: bytes | memoryview, volume: int, start: int = 0) -> list[Finding]:
    """What begins at `volume`, from `data` that begins `start` bytes after it (both in bytes)."""
    view = memoryview(data)
    found: list[Finding] = []
    for magic, at, check in _MAGICS:
        # Nearly all that is looked at shows nothing: its first byte says so.
        if not 0 <= at - start < len(view) or view[at - start] != magic[0]:
            continue
        block = _part(view, start, check.at, check.need)
        offset = at - check.at
        if block is not None and block[offset : offset + len(magic)] == magic:
            confidence = check.test(block)
            if confidence:
                found.append(Finding(check.kind, volume, volume + at, confidence, check.system))
    superblock = _part(view, start, 1024, 1024)
    ext = _ext(superblock) if superblock is not None else None
    if ext:
        found.append(Finding(ext[0], volume, volume + 1024 + 56, ext[1], "linux"))
    return found


def _part(view: memoryview, start: int, at: int, length: int) -> bytes | None:
    begin = at - start
    if begin < 0 or begin + length > len(view):
        return None
    return bytes(view[begin : begin + length])


def partitions(sector: bytes | memoryview) -> list[tuple[int, int]]:
    """(first byte, kind) of the partitions in a master boot record; empty if it is none."""
    block = bytes(sector[:512])
    if len(block) < 512 or block[510:512] != b"\x55\xaa":
        return []
    found = []
    for at in range(446, 510, 16):
        status, kind = block[at], block[at + 4]
        first, count = struct.unpack_from("<II", block, at + 8)
        if status not in (0, 0x80) or (kind and not (first and count)):
            return []
        if kind:
            found.append((first * 512, kind))
    return found


def look_mbr(sector: bytes | memoryview) -> Finding | None:
    """A master boot record with at least one partition, at the disk's beginning."""
    parts = partitions(sector)
    if not parts:
        return None
    kinds = {kind for _, kind in parts}
    system = "linux" if kinds & {0x82, 0x83, 0x8E} else "windows" if 0x27 in kinds else None
    return Finding("mbr", 0, 510, 0.9, system)
