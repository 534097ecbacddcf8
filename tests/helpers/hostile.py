"""A seeded corpus of hostile shards and images: valid ones, mutated, and often with the checksums corrected afterwards."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from webdataset import TarWriter

from helpers.images import plain_image
from helpers.tars import BLOCK, header, sealed

Draw = np.random.Generator
T = TypeVar("T")
Mutation = Callable[[Draw, bytearray], bytearray]


def generator(*key: int) -> Draw:
    """Return the random generator of one case, which depends only on `key`."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def pick(draw: Draw, values: list[T]) -> T:
    return values[int(draw.integers(len(values)))]


# tars


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def records(*pairs: tuple[bytes, bytes]) -> bytes:
    """Return pax records with correct lengths."""
    text = b""
    for key, value in pairs:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest)
        while length != len(rest) + len(b"%d" % length):
            length = len(rest) + len(b"%d" % length)
        text += b"%d" % length + rest
    return text


def extended(kind: bytes, body: bytes) -> bytes:
    """Return a header with a body that describes the next member: pax (x, g), or a GNU long name (L) or link (K)."""
    return header(b"././@Extended", len(body), kind) + padded(body)


def sparse(size: int) -> bytes:
    """Return a GNU sparse file with a map of `size` bytes, in which each block says that another one follows."""
    start = bytearray(header(b"s.jpg", 0, b"S"))
    start[482] = 1
    return sealed(start) + (b"00000000001\0" * 42 + b"\1" + bytes(7)) * (size // BLOCK)


def _members(draw: Draw, longest: int) -> list[tuple[str, bytes]]:
    members = []
    for i in range(4):
        stem = pick(draw, ["s", "a/s", "./b.c/s", "d" * longest + "/s"]) + str(i)
        members += [
            (f"{stem}.jpg", plain_image((8 + i, 8))),
            (f"{stem}.cls", b"%d" % i),
            (f"{stem}.json", b'{"y": %d}' % i),
        ]
    return members


def sound_tar(draw: Draw, path: Path) -> bytearray:
    """Return a small valid tar by one of several writers, in which some members are not files."""
    format = pick(draw, [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, None])
    if format is None:
        with TarWriter(str(path), mtime=pick(draw, [0, 1700000000.25])) as writer:
            for i in range(4):
                writer.write({"__key__": f"n/{i}", "jpg": plain_image((8 + i, 8)), "cls": i, "json": {"y": i}})
        return bytearray(path.read_bytes())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in _members(draw, 120 if format == tarfile.USTAR_FORMAT else 300):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if format == tarfile.PAX_FORMAT and draw.integers(3) == 0:
                info.mtime = 1.5
                info.pax_headers = pick(
                    draw, [{"comment": "x"}, {"size": str(info.size)}, {"SCHILY.xattr.user.a": "1"}]
                )
            tar.addfile(info, io.BytesIO(data))
            if draw.integers(4) == 0:
                other = tarfile.TarInfo(f"other{draw.integers(100)}.jpg")
                other.type = pick(
                    draw, [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
                )
                other.linkname = "s0.jpg"
                tar.addfile(other)
    return bytearray(buffer.getvalue())


def hostile_names(outside: Path) -> list[bytes]:
    """Return names that would lead out of the folder if they were used as paths."""
    names = [
        b"../escaped.jpg",
        b"../../outside/escaped.jpg",
        b"/../escaped.jpg",
        b"a/../../escaped.cls",
        b"..",
        b"/",
        b"",
    ]
    names += [
        str(outside / "escaped.jpg").encode()[:100],
        b"a\0b.jpg",
        b"\0",
        b"\xff\xfe.jpg",
        b"\xed\xa0\x80.jpg",
        b".",
    ]
    return [
        *names,
        b".jpg",
        b"__meta__.jpg",
        b"x" * 100,
        b"a.jpg/",
        b"a" * 96 + b".jpg",
        b"\n : \x1b[31m.jpg",
        b"x.tar.index",
    ]


SIZES = [b"%011o\0" % size for size in (0, 1, 511, 513, 10**5, 8**11 - 1)]
SIZES += [
    b"77777777777\0",
    b"777777777777",
    b"-0000000001\0",
    b"-7777777777\0",
    b"0000000_005\0",
    b" " * 12,
    b"\0" * 12,
]
SIZES += [b"\x80" + size.to_bytes(11, "big") for size in (5, 2**31, 2**63 - 1, 2**63, 2**64, 2**87)]
SIZES += [b"\xff" * 12, b"\xff" + b"\0" * 11, b"\x80" + b"\xff" * 11, b"0x10\0", b"1e3\0", b"\xd9\xa3" * 6]
KINDS = [bytes([kind]) for kind in b"0123456789LKxgSNVMDXA?\0\xff"]
NUMBERS = [
    b"0",
    b"1",
    b"-1",
    b"100",
    b"99999999",
    b"%d" % (2**63),
    b"%d" % 10**30,
    b"9" * 5000,
    b"1.5",
    b"nan",
    b"",
    b"1_0",
]
SPARSE = [
    b"GNU.sparse." + name
    for name in (b"size", b"realsize", b"major", b"minor", b"map", b"offset", b"numbytes", b"name")
]
NAMED = [b"path", b"linkpath", b"hdrcharset", b"GNU.sparse.name", b"SCHILY.xattr.a"]
NUMBERED = [b"size", b"mtime", b"uid", *SPARSE]


def _headers(data: bytearray) -> list[int]:
    """Return the offsets of the blocks that have the checksum of a header."""
    starts = range(0, len(data) - BLOCK + 1, BLOCK)
    return [
        at for at in starts if data[at] and sealed(data[at : at + BLOCK])[148:154] == data[at + 148 : at + 154]
    ] or [0]


def _tar_mutations(names: list[bytes]) -> list[Mutation]:
    fields: list[tuple[slice, list[bytes]]] = [
        (slice(0, 100), names),
        (slice(124, 136), SIZES),
        (slice(124, 136), SIZES),
        (slice(156, 157), KINDS),
        (slice(156, 157), KINDS),
        (slice(157, 257), names),
        (slice(257, 265), [b"ustar  \0", b"ustar\x0000", b"\0" * 8, b"GNUtar \0"]),
        (slice(345, 500), names),
        (slice(482, 483), [b"\1"]),  # more blocks of a sparse map follow
    ]

    def set_fields(draw: Draw, data: bytearray) -> bytearray:
        at = pick(draw, _headers(data))
        block = data[at : at + BLOCK]
        for _ in range(draw.integers(1, 4)):
            field, values = pick(draw, fields)
            block[field] = pick(draw, values).ljust(field.stop - field.start, b"\0")[: field.stop - field.start]
        data[at : at + BLOCK] = sealed(block) if draw.integers(8) else block
        return data

    def flip_header_bits(draw: Draw, data: bytearray) -> bytearray:
        at = pick(draw, _headers(data))
        for place in draw.integers(BLOCK, size=draw.integers(1, 9)).tolist():
            data[min(at + place, len(data) - 1)] ^= 1 << int(draw.integers(8))
        if draw.integers(2):
            data[at : at + BLOCK] = sealed(data[at : at + BLOCK])
        return data

    def insert_extended(draw: Draw, data: bytearray) -> bytearray:
        pairs = []
        for _ in range(draw.integers(1, 5)):
            if draw.integers(2):
                pairs.append((pick(draw, NUMBERED), pick(draw, NUMBERS)))
            else:
                pairs.append((pick(draw, NAMED), pick(draw, [*names, b"BINARY"])))
        body = records(*pairs)
        if draw.integers(4) == 0:
            body = bytes(flip_anywhere(draw, bytearray(body)))
        at = pick(draw, _headers(data))
        kind = pick(draw, [b"x", b"x", b"g", b"L", b"K", b"X"])
        data[at:at] = extended(kind, body if kind not in b"LK" else pick(draw, names)) * int(
            pick(draw, [1, 1, 1, 2, 600])
        )
        return data

    def insert_header(draw: Draw, data: bytearray) -> bytearray:
        at = pick(draw, _headers(data))
        data[at:at] = header(pick(draw, names), pick(draw, SIZES), pick(draw, KINDS), pick(draw, names))
        return data

    def move_blocks(draw: Draw, data: bytearray) -> bytearray:
        blocks = max(len(data) // BLOCK, 1)
        source, target, count = draw.integers(blocks), draw.integers(blocks), draw.integers(1, 6)
        piece = data[source * BLOCK : (source + count) * BLOCK]
        if draw.integers(3) == 0:
            del data[source * BLOCK : (source + count) * BLOCK]
        data[target * BLOCK : (target + (len(piece) // BLOCK) * draw.integers(2)) * BLOCK] = piece
        return data

    often = [set_fields, insert_extended, insert_header]
    return [*often, *often, flip_header_bits, move_blocks, flip_anywhere, cut, junk]


def flip_anywhere(draw: Draw, data: bytearray) -> bytearray:
    for at in draw.integers(max(len(data), 1), size=draw.integers(1, 9)).tolist():
        if data:
            data[at] ^= 1 << int(draw.integers(8))
    return data


def cut(draw: Draw, data: bytearray) -> bytearray:
    return data[: int(draw.integers(len(data) + 1))]


def junk(draw: Draw, data: bytearray) -> bytearray:
    at, count = int(draw.integers(len(data) + 1)), int(draw.integers(1, 1500))
    data[at : at + count * int(draw.integers(2))] = pick(draw, [draw.bytes(count), bytes(count), b"\xff" * count])
    return data


def hostile_tar(draw: Draw, path: Path, outside: Path) -> None:
    """Write a valid tar with one to three mutations to `path`."""
    data = sound_tar(draw, path)
    mutations = _tar_mutations(hostile_names(outside))
    for _ in range(draw.integers(1, 4)):
        data = pick(draw, mutations)(draw, data)
    path.write_bytes(data)


# images


def _animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (32, 24), (40 * i, 0, 0)) for i in range(3)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def sound_images() -> list[bytes]:
    """Return small valid images of all formats, and many kinds of each."""
    noise = np.random.Generator(np.random.Philox(0)).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((32, 24), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    modes: list[tuple[str, str, dict[str, object]]] = [
        ("JPEG", "RGB", {"quality": 90}),
        ("JPEG", "RGB", {"subsampling": 0, "exif": exif}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"restart_marker_blocks": 1, "icc_profile": b"\0" * 300}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        *[("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
        ("PNG", "RGB", {"exif": exif}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {"exif": exif}),
        *[("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")],
        *[("PPM", mode, {}) for mode in ("1", "L", "RGB", "I;16")],
    ]
    images = [_animated()]
    for kind, mode, options in modes:
        buffer = io.BytesIO()
        image.convert("L" if mode == "I;16" else "RGB").convert(mode).save(buffer, kind, **options)
        images.append(buffer.getvalue())
    return images


SIDES = [0, 1, 23, 24, 25, 33, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


def resized_header(data: bytes, width: int, height: int) -> bytes:
    """Return the image with another size in its header; the checksum is correct, but the pixels do not exist."""
    image = bytearray(data)
    if data[:2] == b"\xff\xd8":
        for code in (0xC0, 0xC1, 0xC2):
            if (at := data.find(bytes([0xFF, code, 0]))) > 0:
                image[at + 5 : at + 9] = struct.pack(">HH", min(height, 65535), min(width, 65535))
    elif data[:4] == b"\x89PNG":
        image[16:24] = struct.pack(">LL", width, height)
        image[29:33] = struct.pack(">L", zlib.crc32(image[12:29]))
    elif data[:4] == b"RIFF":
        if (at := data.find(b"VP8X")) > 0:
            image[at + 12 : at + 18] = _three_bytes(width - 1) + _three_bytes(height - 1)
        if (at := data.find(b"VP8 ")) > 0:
            image[at + 14 : at + 18] = struct.pack("<HH", min(width, 16383), min(height, 16383))
        if (at := data.find(b"VP8L")) > 0:
            bits = struct.unpack_from("<L", image, at + 9)[0] >> 28 << 28
            struct.pack_into("<L", image, at + 9, bits | (width - 1) % 2**14 | (height - 1) % 2**14 << 14)
    elif data[:2] == b"BM":
        image[18:26] = struct.pack("<LL", width % 2**32, height % 2**32)
    elif data[:1] == b"P":
        image = bytearray(data.replace(b"32 24", b"%d %d" % (width, height), 1))
    return bytes(image)


def _three_bytes(value: int) -> bytes:
    return (value % 2**24).to_bytes(3, "little")


def _resize(draw: Draw, data: bytearray) -> bytearray:
    return bytearray(resized_header(bytes(data), pick(draw, SIDES), pick(draw, SIDES)))


def _overwrite_header(draw: Draw, data: bytearray) -> bytearray:
    for _ in range(draw.integers(1, 5)):
        at = int(draw.integers(64))
        data[at : at + 1] = draw.bytes(1)
    return data


def _splice(draw: Draw, data: bytearray) -> bytearray:
    other = pick(draw, sound_images())
    first, second, target = *sorted(draw.integers(len(other), size=2).tolist()), int(draw.integers(len(data) + 1))
    data[target : target + (second - first) * int(draw.integers(2))] = other[first:second]
    return data


def hostile_image(draw: Draw, data: bytes) -> bytes:
    """Return the image with one or two mutations."""
    mutations: list[Mutation] = [
        _resize,
        _overwrite_header,
        _overwrite_header,
        _splice,
        flip_anywhere,
        flip_anywhere,
        cut,
        junk,
    ]
    image = bytearray(data)
    for _ in range(draw.integers(1, 3)):
        image = pick(draw, mutations)(draw, image)
    return bytes(image)
