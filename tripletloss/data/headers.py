"""The size of an image according to its file's header, read before anything is decoded.

A file of 100 KB can make the decoder ask for gigabytes. This reads headers as OpenCV's decoder does, so that no file
can have one size here and another there, and takes the larger number if a file gives two. It knows the formats whose
suffixes are in folders.IMAGE_SUFFIXES.
"""

import re
import struct

# Markers of JPEG (ITU-T T.81, table B.1): those of a frame's header, and those that are not followed by a length.
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
JPEG_ALONE = {0x01, *range(0xD0, 0xD8)}
MOST_SEGMENTS = 10_000  # before a frame; cameras write a few dozen
PNM = re.compile(rb"P[1-6](?:\s|#[^\r\n]*[\r\n])+(\d{1,9})\s(?:\s|#[^\r\n]*[\r\n])*(\d{1,9})\s")
TIFF_WIDTH, TIFF_HEIGHT = 256, 257


def size_of(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels of an image file's content; None if its format is unknown or it is cut off."""
    for begins, read in (
        (b"\xff\xd8", _jpeg), (b"\x89PNG\r\n\x1a\n", _png), (b"BM", _bmp), (b"RIFF", _webp), (b"P", _pnm),
        (b"II", _tiff), (b"MM", _tiff),
    ):  # fmt: skip
        if data.startswith(begins):
            try:
                return read(data)
            except (struct.error, IndexError):
                return None  # cut off
    return None


def _jpeg(data):
    at = 2
    for _ in range(MOST_SEGMENTS):
        at = data.find(b"\xff", at)
        if at < 0:
            return None
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if marker and marker not in JPEG_ALONE:
            at += struct.unpack_from(">H", data, at)[0]
    return None


def _png(data):
    return struct.unpack_from(">II", data, 16)  # IHDR comes first


def _bmp(data):
    if struct.unpack_from("<I", data, 14)[0] == 12:  # OS/2's header
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)  # a negative height means that the top row is stored first


def _webp(data):
    if data[8:16] == b"WEBPVP8X":  # the size of the canvas that what follows is drawn onto
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[8:16] == b"WEBPVP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if data[8:16] == b"WEBPVP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _pnm(data):
    found = PNM.match(data)
    return (int(found[1]), int(found[2])) if found else None


def _tiff(data):
    order = "<" if data.startswith(b"II") else ">"
    version = struct.unpack_from(f"{order}H", data, 2)[0]
    if version == 42:
        at = struct.unpack_from(f"{order}I", data, 4)[0]
        count, at, step = struct.unpack_from(f"{order}H", data, at)[0], at + 2, 12
    elif version == 43:  # BigTIFF
        at = struct.unpack_from(f"{order}Q", data, 8)[0]
        count, at, step = struct.unpack_from(f"{order}Q", data, at)[0], at + 8, 20
    else:
        return None
    found = {TIFF_WIDTH: 0, TIFF_HEIGHT: 0}
    for entry in range(at, at + step * min(count, 0xFFFF), step):
        tag, kind = struct.unpack_from(f"{order}HH", data, entry)
        if tag in found:
            letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind, "I")
            found[tag] = max(found[tag], struct.unpack_from(order + letter, data, entry + step // 2 + 2)[0])
    return (found[TIFF_WIDTH], found[TIFF_HEIGHT]) if all(found.values()) else None
