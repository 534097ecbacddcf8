"""Images of the odd kinds found in real data sets: broken, truncated, misnamed or rarely used. They are the same in every run."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 120, 96

_ARITHMETIC = (  # 64x48, encoded by libjpeg-turbo, because neither Pillow nor simplejpeg writes arithmetic-coded JPEGs
    "|JeWF01!$>Nk#wx0RR9200961|JwjV00;&K2L=TQ2L}fU2?z=d6b%du3k(?&6Au&}8Xq1V8XO!TBrYc)A}k{u94I#_EHE)NG&CP4"
    "IXyTsJT5adGXL8ELjeg12@DGi7!3^=G9erxGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBW?k"
    "01*fPFaSUU0U`hb5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zf#0MBpaJSjaQtJF6Mye^$6P~TLg5HkRG%25-Kli)Uy44%qW"
    "*kBSpZbx76!B#-@0$&BvF0C88F)h~winsjFxH`NoNhx760f3dnwhn$3QZVlE&OJooH42K&@4Z-7x8|Ur_8O!t{{VfG;eiz4-y3t3"
    "7;WjdYe2|+EYRT+Eg(9i5dYZ"
)
_FRAMES = (b"\xff\xc0", b"\xff\xc2")
_SCAN, _ADOBE, _END = b"\xff\xda", b"\xff\xee\x00\x0eAdobe", b"\xff\xd9"


def odd_images() -> dict[str, bytes]:
    """Return encoded images, named by what is odd about them."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // 12, WIDTH // 12, 3), dtype=np.uint8))
    picture = coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    jpeg, progressive = _encoded(picture, "JPEG"), _encoded(picture, "JPEG", progressive=True)
    png, webp, cmyk = _encoded(picture, "PNG"), _encoded(picture, "WEBP"), _encoded(picture.convert("CMYK"), "JPEG")
    palette = picture.quantize(64)
    return {
        "JPEG": jpeg,
        **{f"JPEG cut at {part}%": jpeg[: len(jpeg) * part // 100] for part in (99, 90, 70, 30)},
        "JPEG without its end mark": jpeg[:-2],
        "JPEG cut at its first pixel": jpeg[: jpeg.index(_SCAN) + 14],
        "JPEG cut in its header": jpeg[:100],
        "JPEG with an end mark in the middle": _overwritten(jpeg, _END),
        "JPEG with an unknown marker in the middle": _overwritten(jpeg, b"\xff\x10"),
        "JPEG with zeros from the middle on": jpeg[: _middle(jpeg)].ljust(len(jpeg), b"\0"),
        "JPEG with junk from the middle on": jpeg[: _middle(jpeg)] + rng.bytes(len(jpeg) - _middle(jpeg)),
        "JPEG with junk behind it": jpeg + rng.bytes(1000),
        **{f"JPEG with flipped bits, {seed}": _flipped(jpeg, jpeg.index(_SCAN) + 14, seed) for seed in range(4)},
        "JPEG of twice the height in its header": _resized(jpeg, WIDTH, 2 * HEIGHT),
        "JPEG of 8000x4000 pixels in its header": _resized(jpeg, 8000, 4000),
        "JPEG of 65500x65500 pixels in its header": _resized(jpeg, 65500, 65500),
        "JPEG of no height in its header": _resized(jpeg, WIDTH, 0),
        "progressive JPEG": progressive,
        **{f"progressive JPEG cut at {part}%": progressive[: len(progressive) * part // 100] for part in (99, 50)},
        **{
            f"progressive JPEG with flipped bits, {seed}": _flipped(progressive, progressive.index(_SCAN) + 14, seed)
            for seed in range(4)
        },
        "arithmetic-coded JPEG": base64.b85decode(_ARITHMETIC),
        "grayscale JPEG": _encoded(picture.convert("L"), "JPEG"),
        "RGB JPEG": _encoded(picture, "JPEG", keep_rgb=True),
        "CMYK JPEG": cmyk,
        "CMYK JPEG without Adobe's mark": _without_adobe(cmyk),
        "YCCK JPEG": _as_ycck(cmyk),
        "JPEG, 1x1": _encoded(picture.crop((0, 0, 1, 1)), "JPEG"),
        "JPEG, 1x96": _encoded(picture.crop((0, 0, 1, HEIGHT)), "JPEG"),
        "JPEG, 120x1": _encoded(picture.crop((0, 0, WIDTH, 1)), "JPEG"),
        "nothing": b"",
        "zeros": bytes(2000),
        "junk": rng.bytes(2000),
        "PNG": png,
        "PNG cut at 50%": png[: len(png) // 2],
        "PNG without its end mark": png[:-12],
        **{f"PNG with flipped bits, {seed}": _flipped(png, 60, seed) for seed in range(2)},
        "PNG with a wrong checksum": _flipped(png, len(png) - 14, 0, bits=1),
        "PNG of 8000x4000 pixels in its header": _png(8000, 4000, 8, 2, _png_rows(np.asarray(picture))),
        "PNG of 60000x60000 pixels in its header": _png(60000, 60000, 8, 2, _png_rows(np.asarray(picture))),
        "PNG, 1x1": _encoded(picture.crop((0, 0, 1, 1)), "PNG"),
        "1-bit PNG": _encoded(picture.convert("1"), "PNG"),
        "grayscale PNG": _encoded(picture.convert("L"), "PNG"),
        "grayscale PNG with alpha": _encoded(_with_alpha(picture, "LA"), "PNG"),
        "PNG with alpha": _encoded(_with_alpha(picture, "RGBA"), "PNG"),
        "palette PNG": _encoded(palette, "PNG"),
        "palette PNG with alpha": _encoded(palette, "PNG", transparency=bytes(range(0, 256, 4))),
        "16-bit grayscale PNG": _png16(np.asarray(picture.convert("L"))[..., None], 0),
        "16-bit PNG": _png16(np.asarray(picture), 2),
        "16-bit PNG with alpha": _png16(np.asarray(_with_alpha(picture, "RGBA")), 6),
        "WebP": webp,
        "WebP cut at 50%": webp[: len(webp) // 2],
        "WebP with flipped bits": _flipped(webp, 60, 0),
        "lossless WebP": _encoded(picture, "WEBP", lossless=True),
        "WebP with alpha": _encoded(_with_alpha(picture, "RGBA"), "WEBP"),
        "animated WebP": _encoded(picture, "WEBP", save_all=True, append_images=[picture.rotate(180)]),
        "GIF": _encoded(palette, "GIF"),
        "BMP": _encoded(picture, "BMP"),
        "BMP cut at 50%": (bmp := _encoded(picture, "BMP"))[: len(bmp) // 2],
        "TIFF": _encoded(picture, "TIFF"),
        "PPM": _encoded(picture, "PPM"),
        "PPM cut at 50%": (ppm := _encoded(picture, "PPM"))[: len(ppm) // 2],
    }


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def _with_alpha(image: Image.Image, mode: str) -> Image.Image:
    image = image.convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _middle(jpeg: bytes) -> int:
    return (jpeg.index(_SCAN) + len(jpeg)) // 2


def _overwritten(jpeg: bytes, code: bytes) -> bytes:
    return jpeg[: _middle(jpeg)] + code + jpeg[_middle(jpeg) + len(code) :]


def _flipped(data: bytes, start: int, seed: int, bits: int = 4) -> bytes:
    """Flip `bits` bits at random places from `start` on; if there are several, in the second half only."""
    rng = np.random.default_rng(seed)
    flipped = bytearray(data)
    for place in rng.integers(max(start, len(data) // 2 if bits > 1 else start), len(data) - 12, bits).tolist():
        flipped[place] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


def _resized(jpeg: bytes, width: int, height: int) -> bytes:
    """Change the size in the header only."""
    at = max(jpeg.find(frame) for frame in _FRAMES)
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def _as_ycck(cmyk: bytes) -> bytes:
    """Declare the same values to be YCCK, by the transform in the Adobe marker."""
    at = cmyk.index(_ADOBE) + 15
    return cmyk[:at] + b"\x02" + cmyk[at + 1 :]


def _without_adobe(cmyk: bytes) -> bytes:
    at = cmyk.index(_ADOBE)
    return cmyk[:at] + cmyk[at + 16 :]


def _png_rows(pixels: np.ndarray) -> bytes:
    """Compress the rows, each without a filter."""
    rows = pixels.reshape(len(pixels), -1)
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))


def _png16(pixels: np.ndarray, colour: int) -> bytes:
    """Encode a 16-bit PNG, which Pillow does for one channel only. The low byte differs from the high byte."""
    wide = (pixels.astype(">u2") << 8) | (255 - pixels)
    return _png(pixels.shape[1], pixels.shape[0], 16, colour, _png_rows(wide.astype(">u2")))


def _png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    header = struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body)) for kind, body in chunks
    )
