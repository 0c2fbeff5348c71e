"""Every awkward image becomes upright 8-bit RGB, or is refused with a reason, and never warns."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rdcache.data.decoding import MAX_PIXELS, UnreadableImageError, decode_image
from rdcache.data.listing import Entry, open_file

RED, GREEN, BLUE, GREY = (200, 10, 20), (30, 180, 40), (50, 60, 220), (90, 90, 90)


def quadrants() -> np.ndarray:
    """uint8 (8, 12, 3): red and green above blue and grey."""
    image = np.zeros((8, 12, 3), np.uint8)
    image[:4, :6], image[:4, 6:], image[4:, :6], image[4:, 6:] = RED, GREEN, BLUE, GREY
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_ramp(dtype: str, low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 256).reshape(16, 16).astype(dtype)


def png_that_declares(width: int, height: int) -> bytes:
    """A tiny PNG whose header is about a huge image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_rgb_comes_back_as_it_is_and_contiguous() -> None:
    decoded = decode_image(encoded(Image.fromarray(quadrants())))
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, quadrants())


def test_8_bit_grey_is_repeated_and_never_stretched() -> None:
    grey = grey_ramp("uint8", 40, 120)
    decoded = decode_image(encoded(Image.fromarray(grey)))
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_12_bits_in_16_use_the_whole_range(kind: str) -> None:
    grey = grey_ramp("uint16", 100, 4095)
    decoded = decode_image(encoded(Image.fromarray(grey), kind))
    expected = np.rint((grey - 100.0) / (4095 - 100) * 255).astype(np.uint8)
    np.testing.assert_array_equal(decoded, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_wide_tiffs_with_negative_values_use_the_whole_range(dtype: str) -> None:
    hounsfield = grey_ramp(dtype, -1000, 3000)
    decoded = decode_image(encoded(Image.fromarray(hounsfield), "TIFF"))
    expected = np.rint((hounsfield.astype(float) + 1000) / 4000 * 255)
    np.testing.assert_array_equal(decoded[..., 0], expected)


def test_a_constant_16_bit_image_is_black() -> None:
    decoded = decode_image(encoded(Image.fromarray(np.full((4, 4), 30000, np.uint16))))
    assert not decoded.any()


def test_a_float_image_with_nan_is_refused() -> None:
    image = np.ones((4, 4), np.float32)
    image[1, 1] = np.nan
    with pytest.raises(UnreadableImageError, match="NaN"):
        decode_image(encoded(Image.fromarray(image), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_becomes_black(mode: str) -> None:
    image = Image.fromarray(quadrants()).convert("L" if mode == "LA" else "RGB")
    alpha = np.full((8, 12), 255, np.uint8)
    alpha[:, 6:] = 0
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == mode
    decoded = decode_image(encoded(image))
    assert not decoded[:, 6:].any()
    expected = np.asarray(image.convert("RGB"))[:, :6]
    np.testing.assert_array_equal(decoded[:, :6], expected)


def test_half_transparent_is_half_as_bright() -> None:
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 128))
    np.testing.assert_allclose(decode_image(encoded(image))[0, 0], [100, 50, 25], atol=1)


def test_a_palette_gives_its_colours() -> None:
    image = Image.fromarray(quadrants()).quantize(8, dither=Image.Dither.NONE)
    assert image.mode == "P"
    np.testing.assert_array_equal(decode_image(encoded(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", ["index", "bytes"])
def test_a_transparent_palette_entry_becomes_black(transparency: str) -> None:
    image = Image.new("P", (6, 4))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (3, 0, 6, 4))
    value = 1 if transparency == "index" else bytes([255, 0])
    decoded = decode_image(encoded(image, transparency=value))
    assert (decoded[:, :3] == (255, 0, 0)).all()
    assert not decoded[:, 3:].any()


def test_a_colour_key_in_rgb_becomes_black() -> None:
    decoded = decode_image(encoded(Image.fromarray(quadrants()), transparency=GREEN))
    assert not decoded[:4, 6:].any()
    assert (decoded[:4, :6] == RED).all()


def test_cmyk_looks_the_same() -> None:
    data = encoded(Image.fromarray(quadrants()).convert("CMYK"), "TIFF")
    np.testing.assert_allclose(decode_image(data), quadrants(), atol=1)


def test_bilevel_is_black_and_white() -> None:
    mask = np.zeros((9, 7), bool)
    mask[2:5, 3:] = True
    decoded = decode_image(encoded(Image.fromarray(mask)))
    np.testing.assert_array_equal(decoded, np.where(mask, 255, 0)[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = quadrants()
    stored = {  # how a camera that notes this orientation has stored the upright picture
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(decode_image(data), upright)


def test_of_several_pages_the_first_is_taken() -> None:
    first, second = Image.fromarray(quadrants()), Image.new("RGB", (12, 8), "white")
    data = encoded(first, "TIFF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode_image(data), quadrants())


def test_a_jpeg_named_png_is_read_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "named.png"
    path.write_bytes(encoded(Image.new("RGB", (16, 8), GREY), "JPEG"))
    data, pixels = open_file(Entry(path, path.name, 0))
    assert data[:2] == b"\xff\xd8"
    np.testing.assert_array_equal(pixels, np.full((8, 16, 3), 90))


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "BMP", "TIFF", "WEBP", "GIF", "PPM", "MPO"])
def test_the_usual_formats_are_read(kind: str) -> None:
    pixels = np.kron(quadrants(), np.ones((4, 4, 1), np.uint8))
    decoded = decode_image(encoded(Image.fromarray(pixels), kind))
    assert np.abs(decoded[8, 8].astype(int) - RED).max() <= 12


@pytest.mark.parametrize("kind", ["EPS", "TGA", "ICO"])
def test_other_formats_of_pillow_are_refused_untried(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.fromarray(quadrants()), kind)
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript ran"))
    with pytest.raises(UnreadableImageError, match="not an image of a known format"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_file_cut_short_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(UnreadableImageError, match=r"damaged or cut short|not an image"):
        decode_image(data[: len(data) // 2])


def test_an_empty_file_and_a_text_file_say_what_they_are() -> None:
    with pytest.raises(UnreadableImageError, match="the file is empty"):
        decode_image(b"")
    with pytest.raises(UnreadableImageError, match="not an image"):
        decode_image(b"404: not found\n" * 20)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 19_000)])
def test_a_decompression_bomb_is_refused(width: int, height: int) -> None:
    with pytest.raises(UnreadableImageError, match="more pixels than we decode"):
        decode_image(png_that_declares(width, height))


def test_a_bomb_is_refused_even_where_pillow_was_told_to_allow_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadableImageError, match="60000×60000"):
        decode_image(png_that_declares(60_000, 60_000))
    assert MAX_PIXELS < 60_000**2


def test_large_but_possible_images_do_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow warns from here, refuses from 100
    assert decode_image(encoded(Image.fromarray(quadrants()))).shape == (8, 12, 3)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"]),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_gives_an_image_or_a_reason_and_nothing_else(
    kind: str, damage: list[tuple[float, int]]
) -> None:
    data = bytearray(encoded(Image.fromarray(quadrants()), kind))
    for where, value in damage:
        data[int(where * (len(data) - 1))] = value
    try:
        decoded = decode_image(bytes(data))
    except UnreadableImageError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.shape[2:] == (3,)


def test_threads_that_overlap_leave_the_warning_filters_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = {width: threading.Event() for width in (1, 2)}
    go_on = {width: threading.Event() for width in (1, 2)}

    def upright(image: Image.Image) -> Image.Image:
        inside[image.width].set()
        assert go_on[image.width].wait(10)
        return image

    monkeypatch.setattr(ImageOps, "exif_transpose", upright)
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        running = {}
        for width in (1, 2):  # the second begins while the first is under way …
            running[width] = pool.submit(decode_image, encoded(Image.new("RGB", (width, 1))))
            assert inside[width].wait(10)
        for width in (1, 2):  # … and ends after it
            go_on[width].set()
            running[width].result()
    assert list(warnings.filters) == before


@pytest.mark.real_data
def test_the_odd_images_of_published_sets_all_decode(real_data: Path) -> None:
    lines = (real_data / "odd-images" / "INDEX.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(lines) == 16
    for line in lines:
        name, _, _, size, *_ = line.split("\t")
        width, height = map(int, size.split("x"))
        decoded = decode_image((real_data / "odd-images" / name).read_bytes())
        assert decoded.shape == (height, width, 3), name
        assert decoded.std() > 0, name
