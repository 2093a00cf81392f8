"""Image files of every format: what they say about their pixels is applied or refused, never dropped."""

import logging
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from segjax.checks import UserError
from segjax.data import reading
from segjax.data.formats import values
from segjax.data.formats.opening import Reading

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 60000, (7, 5, 3), dtype=np.uint16)
STACK = RNG.integers(0, 256, (5, 7, 5), dtype=np.uint8)


def tiff(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)
    return path


def image(path, channels, dtype="uint8", **reading_keys):
    return reading.read_image(path, channels, dtype, reading=Reading(**reading_keys))[0]


def ids(path, **reading_keys):
    return reading.read_mask(path, reading=Reading(**reading_keys)).ids


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pictures_are_upright_as_pillow_turns_them(tmp_path, tag, suffix):
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as stored:
        want, stored = np.asarray(ImageOps.exif_transpose(stored)), np.asarray(stored)
    np.testing.assert_array_equal(image(path, 3), want)
    assert reading.read_size(path) == want.shape[:2]
    np.testing.assert_array_equal(image(path, 3, orientation="stored"), stored)
    # A stated size decides, whatever the key says.
    for size in ((7, 5), (5, 7)) if tag > 4 else ():
        for key in ("upright", "stored"):
            found, _ = reading.read_image(path, 3, reading=Reading(orientation=key), size=size)
            assert found.shape[:2] == size == reading.read_size(path, reading=Reading(orientation=key), size=size)
    if suffix != "jpg":
        mask = tmp_path / f"mask.{suffix}"
        Image.fromarray(np.dstack([GREY] * 3)).save(mask, exif=exif, lossless=True)
        assert ids(mask).shape == want.shape[:2]


@pytest.mark.parametrize("tag", range(1, 9))
def test_tiff_pictures_are_upright_too(tmp_path, tag):
    path = tiff(tmp_path / "a.tif", RGB, photometric="rgb", extratags=[(274, "H", 1, tag, True)])
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(image(path, 3), image(tmp_path / "a.png", 3))


@pytest.mark.parametrize(
    "pixels", [RGB, DEEP, DEEP[..., 0], np.dstack([RGB] * 4), DEEP[..., :2], RGB / np.float32(3), RGB[..., 0] > 99]
)
@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_any_bands_and_depth(tmp_path, pixels, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, pixels)
    else:
        rgb = pixels.ndim == 3 and pixels.shape[2] == 3
        tiff(path, pixels, photometric="rgb" if rgb else "minisblack", planarconfig=None if rgb else "contig")
    dtype = "float32" if pixels.dtype.kind == "f" else "uint8" if pixels.dtype == bool else pixels.dtype.name
    want = np.atleast_3d(pixels) * (255 if pixels.dtype == bool and suffix == "tif" else 1)
    assert reading.read_dtype(path) == dtype
    np.testing.assert_array_equal(image(path, want.shape[2], dtype), want)
    with pytest.raises(UserError, match=rf"a\.{suffix} has {want.shape[2]} channels.* 7 values"):
        image(path, 7, dtype)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (GREY.astype(np.int16) - 100, "float32"),
        (GREY.astype(np.int8), "float32"),
        (GREY.astype(np.uint32) * 9, "float32"),
        (GREY.astype(np.float16), "float32"),
        (GREY.astype(np.float64) / 3, "float32"),
    ],
)
def test_other_numbers_are_floats(tmp_path, stored, dtype):
    path = tiff(tmp_path / "a.tif", stored)
    assert reading.read_dtype(path) == dtype
    np.testing.assert_array_equal(image(path, 1, dtype)[..., 0], stored.astype(np.float32))


def test_numbers_that_would_change_are_refused(tmp_path):
    for stored in (np.full((2, 2), 2**31, np.uint32), np.full((2, 2), 1e300), np.full((2, 2), np.inf)):
        with pytest.raises(UserError, match=r"a\.tif holds"):
            image(tiff(tmp_path / "a.tif", stored), 1, "float32")
    with pytest.raises(UserError, match=r"a\.tif holds complex"):
        image(tiff(tmp_path / "a.tif", np.zeros((2, 2), np.complex64)), 1, "float32")
    with pytest.raises(UserError, match=r"a\.tif holds ids beyond"):
        ids(tiff(tmp_path / "a.tif", np.full((2, 2), 2**31, np.uint32)))


def test_masks_of_every_width_and_sign_hold_ids(tmp_path):
    for dtype in (np.int8, np.int16, np.int32, np.uint16, np.uint32, np.float32, np.float64, bool):
        stored = GREY.astype(dtype)
        options = {"photometric": "minisblack"} if dtype is bool else {}
        np.testing.assert_array_equal(ids(tiff(tmp_path / "a.tif", stored, **options)), stored)
        np.save(tmp_path / "a.npy", stored)
        np.testing.assert_array_equal(ids(tmp_path / "a.npy"), stored)


def png(path, pixels, bits):
    """Writes a grey PNG of 1, 2 or 4 bits."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    bit = (pixels[..., None] >> np.arange(bits)[::-1]) & 1
    rows = b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in bit)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_ids_in_masks_and_shades_in_images(tmp_path, bits):
    white = 2**bits - 1
    stored = GREY % (white + 1)
    png(tmp_path / "a.png", stored, bits)
    plain = b"P2\n# made by hand\n5 7\n%d\n%s" % (white, b" ".join(b"%d" % value for value in stored.ravel()))
    (tmp_path / "a.pgm").write_bytes(plain)
    (tmp_path / "b.pgm").write_bytes(b"P5\n5 7\n%d\n" % white + stored.tobytes())
    for name in ("a.png", "a.pgm", "b.pgm"):
        np.testing.assert_array_equal(ids(tmp_path / name), stored)
        np.testing.assert_array_equal(image(tmp_path / name, 1)[..., 0], stored * (255 // white))


def test_files_in_which_0_is_white(tmp_path):
    path = tiff(tmp_path / "a.tif", GREY, photometric="miniswhite")
    np.testing.assert_array_equal(image(path, 1)[..., 0], 255 - GREY)
    deep = tiff(tmp_path / "deep.tif", DEEP[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(image(deep, 1, "uint16")[..., 0], 65535 - DEEP[..., 0])
    (tmp_path / "a.pbm").write_bytes(b"P1\n2 1\n1 0\n")
    np.testing.assert_array_equal(image(tmp_path / "a.pbm", 1)[..., 0], [[0, 255]])
    for file, stored, inverted in ((path, GREY, 255 - GREY), (tmp_path / "a.pbm", [[1, 0]], [[0, 1]])):
        with pytest.raises(UserError, match=rf"{file.name} .*WhiteIsZero.*reading\.white_is_zero"):
            ids(file)
        np.testing.assert_array_equal(ids(file, white_is_zero="stored"), stored)
        np.testing.assert_array_equal(ids(file, white_is_zero="inverted"), inverted)


def test_16_bit_colour(tmp_path):
    codecs = pytest.importorskip("imagecodecs")
    (tmp_path / "a.png").write_bytes(codecs.png_encode(DEEP))
    (tmp_path / "a.jp2").write_bytes(codecs.jpeg2k_encode(DEEP, level=0))
    (tmp_path / "a.ppm").write_bytes(b"P6\n5 7\n60000\n" + DEEP.astype(">u2").tobytes())
    tiff(tmp_path / "a.tif", DEEP, photometric="rgb")
    for suffix in ("png", "jp2", "ppm", "tif"):
        assert reading.read_dtype(tmp_path / f"a.{suffix}") == "uint16"
        np.testing.assert_array_equal(image(tmp_path / f"a.{suffix}", 3, "uint16"), DEEP)


@pytest.mark.parametrize("compression", ["lzw", "deflate", "packbits", "zstd"])
def test_compressed_tiled_and_big_tiff(tmp_path, compression):
    pytest.importorskip("imagecodecs")
    path = tiff(tmp_path / "a.tif", RGB, photometric="rgb", tile=(16, 16), bigtiff=True, compression=compression)
    np.testing.assert_array_equal(image(path, 3), RGB)
    np.testing.assert_array_equal(ids(tiff(path, GREY, compression=compression, predictor=True)), GREY)


def test_a_missing_decoder_is_named_with_its_extra(tmp_path, monkeypatch):
    import tifffile.tifffile as library

    path = tiff(tmp_path / "a.tif", RGB, photometric="rgb", compression="lzw")
    error = ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")
    monkeypatch.setattr(library.TiffPage, "asarray", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match=r"a\.tif.*segjax\[formats\]"):
        image(path, 3)


def test_pages_are_samples_channels_or_the_first(tmp_path):
    path = tiff(tmp_path / "a.tif", STACK, photometric="minisblack")
    assert reading.count_pages(path) == 5
    for page in range(5):
        np.testing.assert_array_equal(reading.read_image(path, 1, page=page)[0][..., 0], STACK[page])
        np.testing.assert_array_equal(reading.read_mask(path, page=page).ids, STACK[page])
    np.testing.assert_array_equal(image(path, 5, pages="channels"), np.moveaxis(STACK, 0, -1))
    np.testing.assert_array_equal(image(path, 1, pages="first")[..., 0], STACK[0])
    for read in (lambda: image(path, 1), lambda: ids(path), lambda: reading.read_instances(path)):
        with pytest.raises(UserError, match=r"a\.tif holds 5 pages.*reading\.pages"):
            read()


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_the_axis_of_channels_of_a_microscope(tmp_path, kind):
    pixels = RNG.integers(0, 256, (3, 2, 7, 5), dtype=np.uint8)
    path = tiff(tmp_path / "a.tif", pixels, **{kind: True}, metadata={"axes": "ZCYX"})
    assert reading.count_pages(path) == 6
    joined = Reading(pages="channels")
    assert reading.count_pages(path, reading=joined) == 3
    found, _ = reading.read_image(path, 2, reading=joined, page=1)
    np.testing.assert_array_equal(found, np.moveaxis(pixels[1], 0, -1))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_frames_of_animations_are_pages(tmp_path, suffix):
    path, frames = tmp_path / f"a.{suffix}", [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    assert reading.count_pages(path) == 2
    with pytest.raises(UserError, match=rf"a\.{suffix} holds 2 pages"):
        image(path, 3)
    if suffix != "gif":
        np.testing.assert_array_equal(reading.read_image(path, 3, page=1)[0], RGB[::-1])


def test_overviews_and_masks_inside_a_file_are_no_pages(tmp_path):
    path = tmp_path / "a.tif"
    inside = GREY > 128
    with tifffile.TiffWriter(path) as file:
        file.write(RGB, photometric="rgb", metadata=None)
        file.write(RGB[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
        file.write(inside, photometric="mask", subfiletype=4, metadata=None)
    assert reading.count_pages(path) == 1
    pixels, empty = reading.read_image(path, 3)
    np.testing.assert_array_equal(pixels, RGB)
    np.testing.assert_array_equal(empty, ~inside)


def test_nodata_is_no_data_where_all_bands_have_it(tmp_path):
    pixels = RGB.astype(np.float32)
    pixels[:2], pixels[3, 3, 1], pixels[4, 4] = -9999, np.nan, np.nan
    path = tiff(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[(42113, "s", 6, "-9999", True)])
    found, empty = reading.read_image(path, 3, "float32")
    want = np.zeros((7, 5), bool)
    want[:2], want[4, 4] = True, True
    np.testing.assert_array_equal(empty, want)
    known = np.isfinite(pixels) & (pixels != -9999)
    np.testing.assert_array_equal(found[known], pixels[known])
    assert found[3, 3, 1] == pixels[..., 1][known[..., 1]].min() and found.min() >= 0
    mask = reading.read_mask(tiff(tmp_path / "m.tif", GREY, extratags=[(42113, "s", 2, "7", True)]))
    assert mask.nodata == 7


def test_colour_models(tmp_path):
    for model in ("CMYK", "YCbCr"):
        picture = Image.fromarray(RGB).convert(model)
        for suffix in ("tif", "jpg"):
            picture.save(tmp_path / f"a.{suffix}")
            with Image.open(tmp_path / f"a.{suffix}") as read:
                np.testing.assert_array_equal(image(tmp_path / f"a.{suffix}", 3), np.asarray(read.convert("RGB")))
    with pytest.raises(UserError, match=r"lab\.tif.*LAB"):
        image(tiff(tmp_path / "lab.tif", RGB, photometric="cielab"), 3)


def test_bands_are_chosen_by_number(tmp_path):
    path = tiff(tmp_path / "a.tif", np.dstack([RGB, GREY]), photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(image(path, 2, bands=(3, 0)), np.dstack([GREY, RGB[..., 0]]))
    with pytest.raises(UserError, match=r"a\.tif has 4 bands.*reading\.bands"):
        image(path, 2, bands=(4, 0))


def test_transparency_is_said_once_or_unlabelled(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(values, "_warned", set())
    rgba = np.dstack([RGB, GREY])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    tiff(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    index = Image.fromarray((GREY % 3).astype(np.uint8))
    index.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    index.save(tmp_path / "index.png", transparency=1)
    with caplog.at_level(logging.WARNING, "segjax"):
        for name in ("a.png", "a.tif"):
            np.testing.assert_array_equal(image(tmp_path / name, 3), RGB)
            np.testing.assert_array_equal(image(tmp_path / name, 4), rgba)
        np.testing.assert_array_equal(ids(tmp_path / "index.png"), GREY % 3)
    assert len(caplog.records) == 1 and "a.png" in caplog.text and "reading.transparent" in caplog.text
    unlabelled = Reading(transparent="unlabelled")
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(reading.read_image(tmp_path / name, 3, reading=unlabelled)[1], GREY < 255)
    found = reading.read_mask(tmp_path / "index.png", reading=unlabelled)
    np.testing.assert_array_equal(found.empty, GREY % 3 == 1)


def test_a_threshold_reads_lossy_masks(tmp_path):
    half = np.zeros((16, 16), np.uint8)
    half[:, 8:] = 255
    Image.fromarray(half).save(tmp_path / "a.jpg", quality=80)
    with pytest.raises(UserError, match=r"a\.jpg.*JPEG.*source\.threshold"):
        reading.read_mask(tmp_path / "a.jpg")
    for file in ("a.jpg", "rgb.jpg"):
        Image.fromarray(np.dstack([half] * 3)).save(tmp_path / "rgb.jpg", quality=80)
        np.testing.assert_array_equal(reading.read_mask(tmp_path / file, threshold=128).ids, half > 0)


def test_damaged_files_are_corrupt_and_others_are_not(tmp_path):
    path = tiff(tmp_path / "a.tif", STACK, photometric="minisblack", compression="zlib")
    np.save(tmp_path / "a.npy", STACK)
    for file, page in ((path, 4), (tmp_path / "a.npy", 0)):
        whole = file.read_bytes()
        for share in (0.99, 0.7, 0.3):
            file.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(reading.CorruptImage, match=file.name):
                reading.read_image(file, 1 if page else 5, page=page)
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(GREY)
        file.write(GREY[:3])
    with pytest.raises(UserError, match=r"two\.tif: its pages differ") as caught:
        image(tmp_path / "two.tif", 1)
    assert not isinstance(caught.value, reading.CorruptImage)
