"""Decoding: what is in the file, or an error that names it."""

import io

import numpy as np
import pytest
from PIL import Image

from segjax.checks import UserError
from segjax.data import reading
from segjax.data.reading import CorruptImage

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 4096, (7, 5), dtype=np.uint16)


def save(path, pixels, **options):
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return str(path)


def read_image(*args, **kwargs):
    return reading.read_image(*args, **kwargs)[0]


def read_mask(*args, **kwargs):
    return reading.read_mask(*args, **kwargs).ids


def palette(indices, colours):
    picture = Image.fromarray(indices).convert("L")
    picture.putpalette(np.asarray(colours, np.uint8).tobytes())
    return picture


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm", "webp"])
def test_lossless_rgb_is_exact(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", RGB, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(path, 3), RGB)
    luma = np.array(Image.fromarray(RGB).convert("L"))
    np.testing.assert_array_equal(read_image(path, 1), luma[..., None])


@pytest.mark.parametrize("suffix", ["png", "tif", "gif", "bmp", "pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_image(tmp_path, suffix, channels):
    got = read_image(save(tmp_path / f"a.{suffix}", GREY), channels)
    assert got.dtype == np.uint8 and got.flags.writeable
    np.testing.assert_array_equal(got, np.repeat(GREY[..., None], channels, 2))


def test_jpeg_equals_tensorflow_with_the_accurate_dct(tmp_path):
    tf = pytest.importorskip("tensorflow")
    smooth = np.array(Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((83, 61)))
    for subsampling in (0, 2):
        path = save(tmp_path / "a.jpg", smooth, quality=80, subsampling=subsampling)
        want = tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method="INTEGER_ACCURATE").numpy()
        np.testing.assert_array_equal(read_image(path, 3), want)


def test_image_drops_alpha_and_turns_palettes_into_colours(tmp_path):
    rgba = np.dstack([RGB, GREY])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", rgba), 3), RGB)
    la = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(255 - GREY)))
    np.testing.assert_array_equal(read_image(save(tmp_path / "la.png", la), 1)[..., 0], GREY)
    colours = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    path = save(tmp_path / "p.png", palette(GREY, colours), transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_image(path, 3), colours[GREY])


def test_one_bit_image_is_black_and_white(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(GREY > 99))
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], np.where(GREY > 99, 255, 0))


def test_bytes_are_read_like_a_file():
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    np.testing.assert_array_equal(read_image(buffer.getvalue(), 3), RGB)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_stay(tmp_path, suffix, channels):
    path = save(tmp_path / f"a.{suffix}", DEEP)
    assert reading.read_dtype(path) == "uint16"
    got = read_image(path, channels, "uint16")
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, np.repeat(DEEP[..., None], channels, 2))
    with pytest.raises(UserError, match=rf"a\.{suffix} .*uint16 .*uint8"):
        read_image(path, channels)


def test_floats_stay_and_nan_is_the_least_value(tmp_path):
    values = np.array([[-1.0, 0.0, 0.5, 2.0, np.nan]], np.float32)
    path = save(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_image(path, 1, "float32")[0, :, 0], [-1, 0, 0.5, 2, -1])


def test_images_of_one_set_have_one_depth(tmp_path):
    paths = [save(tmp_path / f"{i}.png", DEEP if i == 7 else RGB) for i in range(9)]
    assert reading.common_dtype(paths[:7]) == "uint8" and reading.common_dtype(paths[7:8]) == "uint16"
    (tmp_path / "8.png").write_bytes(b"torn")
    assert reading.common_dtype(paths[8:]) == "uint8"
    with pytest.raises(UserError, match=r"0\.png .*uint8 .*7\.png .*uint16"):
        reading.common_dtype(paths)


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "bmp"])
def test_mask_holds_palette_indices_never_colours(tmp_path, suffix):
    indices = RNG.permutation(64).astype(np.uint8).reshape(8, 8)  # all in use: GIF writers renumber the others
    path = save(tmp_path / f"a.{suffix}", palette(indices, RNG.integers(0, 256, (64, 3))))
    with Image.open(path) as picture:
        assert picture.mode == "P"
    np.testing.assert_array_equal(read_mask(path), indices)


def test_gif_with_two_greys_holds_greys_whatever_their_indices(tmp_path):
    for colours in ([[0] * 3, [255] * 3], [[255] * 3, [0] * 3]):
        path = save(tmp_path / "a.gif", palette(GREY % 2, colours))
        np.testing.assert_array_equal(read_mask(path), np.array(colours)[GREY % 2, 0])


def test_palette_with_transparency_still_holds_indices(tmp_path):
    few = GREY % 5
    path = save(tmp_path / "a.png", palette(few, RNG.integers(0, 256, (256, 3))), transparency=b"\0\xff\0")
    np.testing.assert_array_equal(read_mask(path), few)


@pytest.mark.parametrize("suffix", ["png", "tif", "gif", "bmp", "pgm", "webp"])
def test_mask_holds_stored_grey_values(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", GREY, **({"lossless": True} if suffix == "webp" else {}))
    got = read_mask(path)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, GREY)


@pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32)])
def test_deep_masks_keep_every_value(tmp_path, suffix, dtype):
    ids = RNG.integers(0, 60000, (7, 5)).astype(dtype)
    np.testing.assert_array_equal(read_mask(save(tmp_path / f"a.{suffix}", ids)), ids)


def test_one_bit_mask_is_zero_and_one(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(GREY > 99))
    np.testing.assert_array_equal(read_mask(path), GREY > 99)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_grey_saved_with_more_channels_is_grey(tmp_path, mode):
    path = save(tmp_path / "a.png", Image.fromarray(GREY).convert(mode))
    np.testing.assert_array_equal(read_mask(path), GREY)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_table(tmp_path, mode):
    colours = np.array([[9, 200, 3], [255, 255, 255], [0, 0, 1]], np.uint8)
    index = GREY % 3
    picture = palette(index, colours) if mode == "P" else Image.fromarray(colours[index]).convert(mode)
    table = {tuple(c): i for c, i in zip(colours.tolist(), (4, 0, 255), strict=True)}
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.png", picture), table), np.array([4, 0, 255])[index])


def test_unknown_colours_are_named_with_file_and_count(tmp_path):
    rgb = np.zeros((4, 5, 3), np.uint8)
    rgb[0, :3] = (7, 8, 9)
    path = save(tmp_path / "odd.png", rgb)
    with pytest.raises(UserError, match=r"odd\.png.*\(7, 8, 9\): 3 pixels.*'ignore'"):
        read_mask(path, {(0, 0, 0): 0})
    with pytest.raises(UserError, match=r"odd\.png.*source\.colours"):
        read_mask(path)


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "WEBP"}, {"format": "TIFF", "compression": "jpeg"}])
def test_masks_compressed_with_loss_are_refused(tmp_path, options):
    path = save(tmp_path / "lossy.bin", GREY, **options)
    with pytest.raises(UserError, match=r"lossy\.bin.*Save masks as PNG"):
        read_mask(path)


def test_float_masks_must_hold_whole_numbers(tmp_path):
    values = GREY.astype(np.float32)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "f.tif", values)), GREY)
    values[2, 3] += 0.5
    with pytest.raises(UserError, match=r"f\.tif.*class ids"):
        read_mask(save(tmp_path / "f.tif", values))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp", "jp2"])
def test_truncated_files_are_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    save(path, RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = path.read_bytes()
    for share in (0.6, 0.1, 0.0):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CorruptImage, match=rf"cut\.{suffix}"):
            read_image(path, 3)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a", b"II*\0" + b"\xff" * 9]
)
def test_garbage_is_named(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    for read in (lambda p: read_image(p, 3), read_mask, reading.read_size):
        with pytest.raises(CorruptImage, match=r"bad\.png"):
            read(path)


def test_flipped_bits_of_a_png_are_found(tmp_path):
    path = tmp_path / "flip.png"
    save(path, RGB)
    content = bytearray(path.read_bytes())
    content[60] ^= 16
    path.write_bytes(content)
    with pytest.raises(CorruptImage, match=r"flip\.png"):
        read_image(path, 3)


def test_missing_file_and_odd_channels(tmp_path):
    for read in (lambda p: read_image(p, 3), read_mask, reading.read_size):
        with pytest.raises(UserError, match=r"gone\.png.*No such file") as caught:
            read(tmp_path / "gone.png")
        assert not isinstance(caught.value, CorruptImage)
    with pytest.raises(UserError, match=r"a\.png has 3 channels.* 4 values"):
        read_image(save(tmp_path / "a.png", RGB), 4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_size_is_rows_and_columns(tmp_path, suffix):
    assert reading.read_size(save(tmp_path / f"a.{suffix}", RGB)) == (7, 5)
