"""TIFF and PNG files, written from the definitions of the formats alone."""

import struct
import zlib
from typing import Literal

import numpy as np

_LONG = 4  # type and size of every entry
UNSIGNED, SIGNED, REAL = 1, 2, 3
WHITE_IS_0, BLACK_IS_0, RGB, CMYK = 0, 1, 2, 5
CHUNKY, PLANAR = 1, 2


def tiff_bytes(
    *pages: np.ndarray,
    photometric: int = BLACK_IS_0,
    planar: int = CHUNKY,
    order: Literal["<", ">"] = "<",
    bits: int | None = None,
    extra: int = 0,
    subfiles: tuple[int, ...] = (),
    orientation: int = 1,
    packed: bytes = b"",
) -> bytes:
    """A file of pages (H, W) or (H, W, C); `extra` is the meaning of further planes (2: alpha).

    `packed` replaces the pixels, for numbers that are no whole bytes.
    """
    content = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    for index, page in enumerate(pages):
        pixels = page.reshape(*page.shape[:2], -1).astype(page.dtype.newbyteorder(order))
        height, width, planes = pixels.shape
        parts = [packed or pixels.tobytes()]
        if planar == PLANAR:
            parts = [pixels[..., plane].tobytes() for plane in range(planes)]
        kind = {"u": UNSIGNED, "i": SIGNED, "f": REAL}[page.dtype.kind]
        own = {RGB: 3, CMYK: 4}.get(photometric, 1)
        entries: dict[int, list[int]] = {
            254: [subfiles[index] if subfiles else 0],
            256: [width],
            257: [height],
            258: [bits or 8 * page.dtype.itemsize] * planes,
            259: [1],
            262: [photometric],
            273: [0] * len(parts),  # offsets, known below
            274: [orientation],
            277: [planes],
            278: [height],
            279: [len(part) for part in parts],
            284: [planar],
            338: [extra] * (planes - own),
            339: [kind] * planes,
        }
        entries = {tag: values for tag, values in entries.items() if values}
        start = len(content)
        values_at = start + 2 + 12 * len(entries) + 4
        long = sum(_LONG * len(values) for values in entries.values() if len(values) > 1)
        data_at = values_at + long
        entries[273] = [data_at + sum(map(len, parts[:part])) for part in range(len(parts))]
        after = data_at + sum(map(len, parts))
        head, tail = struct.pack(f"{order}H", len(entries)), b""
        for tag, values in sorted(entries.items()):
            entry = struct.pack(f"{order}{len(values)}I", *values)
            if len(values) > 1:
                place = struct.pack(f"{order}I", values_at + len(tail))
                tail += entry
            else:
                place = entry
            head += struct.pack(f"{order}HHI", tag, _LONG, len(values)) + place
        following = after if index < len(pages) - 1 else 0
        content += head + struct.pack(f"{order}I", following) + tail + b"".join(parts)
    return content


def png_bytes(pixels: np.ndarray, colour_type: int, transparent: bytes = b"") -> bytes:
    """A PNG file of unsigned pixels (H, W, C) and, optionally, the content of its chunk tRNS."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", transparent)]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))]
    chunks = [name + content for name, content in parts if content] + [b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )
