"""Down to the row that is wanted the torch backend decodes what it decodes of the whole image, once that has been found sound."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from helpers.hostile import generator, hostile_image
from helpers.images import encoded
from helpers.samples import write_shards
from multimix_pipe.native.decode import Decoder, UndecodableError, decode_indexed
from multimix_pipe.shards import open_index

HEIGHT, WIDTH = 75, 52


def scene() -> NDArray[np.uint8]:
    """Edges and colours, so that a wrong neighbour shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    channels = [127 + 120 * np.sin((a * y + b * x) / c) for a, b, c in ((3, 1, 2), (1, 3, 1.5), (2, -2, 3))]
    return np.stack(channels, axis=2).astype(np.uint8)


def saved(form: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    return encoded(Image.fromarray(scene()).convert(mode), form, **options)


def sampled(sampling: str) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(scene(), quality=90, colorsubsampling=sampling)
    return data


def marker(code: int, body: bytes) -> bytes:
    return bytes((0xFF, code)) + (len(body) + 2).to_bytes(2, "big") + body


def segments(data: bytes) -> dict[int, bytes]:
    """Bodies by marker; of several of a kind one behind the other. Behind the scan header: all up to the end mark."""
    found: dict[int, bytes] = {}
    place = 2
    while place < len(data):
        code, size = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        body, place = data[place + 4 : place + 2 + size], place + 2 + size
        if code == 0xDA:
            return {**found, code: body, 0: data[place:-2]}
        found[code] = found.get(code, b"") + body
    raise AssertionError("no scan")


def plane_by_plane() -> bytes:
    """A baseline JPEG of three scans, a component each: rows of the image lie apart in it."""
    planes = Image.fromarray(scene()).convert("YCbCr").split()
    scans = []
    for number, plane in enumerate(planes, 1):
        parts = segments(encoded(plane, "JPEG", quality=90))
        scans.append(marker(0xDA, bytes((1, number, 0, 0, 63, 0))) + parts[0])
    size = HEIGHT.to_bytes(2, "big") + WIDTH.to_bytes(2, "big")
    frame = marker(0xC0, b"\x08" + size + b"\x03" + b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3)))
    return b"\xff\xd8" + marker(0xDB, parts[0xDB]) + frame + marker(0xC4, parts[0xC4]) + b"".join(scans) + b"\xff\xd9"


SHORTENED = {
    **{sampling: sampled(sampling) for sampling in ("444", "422", "420", "440", "411", "Gray")},
    "restarts": saved(restart_marker_blocks=2),
    "optimised": saved(optimize=True),
    "cmyk": saved(mode="CMYK"),
    "with a comment": saved(comment=b"\xff\xc0\x00\x11 no frame"),
}
WHOLE = {
    "progressive": saved(progressive=True),
    "plane by plane": plane_by_plane(),
    "bytes behind a scan": sampled("420")[:-2] + 50 * b"junk" + b"\xff\xd9",
    "png": saved("PNG"),
    "webp": saved("WEBP", lossless=True),
}


def opened(folder: Path, data: bytes) -> Decoder:
    return Decoder(open_index(write_shards(folder, [("image", "jpg", data)], shards=1), progress=False))


def array(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(bytearray(data), dtype=np.uint8)


@pytest.mark.parametrize("kind", [*SHORTENED, *WHOLE])
def test_rows_are_those_of_the_whole_image(tmp_path: Path, kind: str) -> None:
    data = {**SHORTENED, **WHOLE}[kind]
    decoder, whole = opened(tmp_path, data), decode_indexed(array(data), HEIGHT, WIDTH)
    assert decoder.decode(0, array(data), 1).shape == whole.shape == (HEIGHT, WIDTH, 3)  # the first time
    for past in range(1, HEIGHT + 1):
        rows = decoder.decode(0, array(data), past)
        assert np.array_equal(rows[:past], whole[:past]), past
        assert len(rows) == (min(past + 1, HEIGHT) if kind in SHORTENED else HEIGHT)
    assert np.array_equal(decoder.decode(0, array(data)), whole)


def test_a_damaged_image_is_refused_each_time_wherever_the_damage_is(tmp_path: Path) -> None:
    data = sampled("420")
    damaged = data[: 3 * len(data) // 4]
    decoder = opened(tmp_path, damaged)
    for _ in range(3):
        with pytest.raises(UndecodableError, match="cannot be decoded"):
            decoder.decode(0, array(damaged), 8)


def test_an_image_that_the_decoder_gets_over_gives_the_same_rows_too(tmp_path: Path) -> None:
    mutated = [hostile_image(generator(7, number), SHORTENED["420"]) for number in range(400)]
    index = open_index(write_shards(tmp_path, [(f"{i}", "jpg", data) for i, data in enumerate(mutated)], shards=1))
    decoder, shortened = Decoder(index), 0
    for sample in np.flatnonzero(index.problem == 0).tolist():
        data = mutated[int(index.key(sample))]
        try:
            whole = decoder.decode(sample, array(data))
        except UndecodableError:
            continue
        for past in (1, 16, len(whole) // 2):
            rows = decoder.decode(sample, array(data), past)
            assert np.array_equal(rows[:past], whole[:past])
            shortened += len(rows) < len(whole)
    assert shortened > 100


OTHERS = {
    "wider": sampled("420").replace(WIDTH.to_bytes(2, "big") + b"\3", b"\x4e\x20\3", 1),
    "another image": saved(quality=30, comment=b"of the same size"),
    "zeros": bytes(4000),
    "another format": saved("PNG"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_bytes_that_have_changed_are_checked_like_any_others(tmp_path: Path, other: bytes) -> None:
    decoder, sound = opened(tmp_path, sampled("420")), array(sampled("420"))
    decoder.decode(0, sound.copy())
    try:
        whole = decode_indexed(array(other), HEIGHT, WIDTH)
    except UndecodableError as error:
        with pytest.raises(UndecodableError, match=f"^{re.escape(str(error))}$"):
            decoder.decode(0, array(other), 8)
    else:
        assert np.array_equal(decoder.decode(0, array(other), 8), whole)
    assert np.array_equal(decoder.decode(0, sound.copy(), 8)[:8], decode_indexed(sound, HEIGHT, WIDTH)[:8])
