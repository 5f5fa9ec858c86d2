"""What a viewer shows on white: known pixels, in every mode and format, and ImageMagick's."""

import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import PIL
import pytest
from data.pictures import SIZE, Pixels, blocks, palette_image, white_page, write_png
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from ultimus_ignite.data import pixels
from ultimus_ignite.data.pixels import UnreadableError, on_white, read_pixels

Save = Callable[[Pixels, Path], None]


def as_mode(mode: str, **options: object) -> Save:
    return lambda rgba, path: Image.fromarray(rgba).convert(mode).save(path, **options)


def palette(transparency: str) -> Save:
    def save(rgba: Pixels, path: Path) -> None:
        image, alphas = palette_image(rgba)
        if transparency == "one":
            image.save(path, transparency=alphas.index(0))
        elif transparency == "each":
            image.save(path, transparency=bytes(alphas))
        else:
            image.save(path)

    return save


def one_colour(mode: str) -> Save:
    def save(rgba: Pixels, path: Path) -> None:
        image = Image.fromarray(rgba).convert("RGB").convert(mode)
        image.save(path, transparency=1 if mode == "L" else (1, 1, 1))

    return save


def deep(depth: int, *, rgb: bool = False) -> Save:
    """A PNG of another depth, with the colour that is not shown in its tRNS chunk."""

    def save(rgba: Pixels, path: Path) -> None:
        samples = rgba[..., :3].astype(np.int64) if rgb else rgba[..., 0].astype(np.int64)
        # The low byte of 16 bits is not the high one: Pillow compares with the wrong one.
        samples = samples * 256 + 7 if depth == 16 else samples * (2**depth - 1) // 255
        hidden = samples[rgba[..., 3] == 0][0]
        write_png(path, samples, depth, rgb=rgb, tRNS=np.atleast_1d(hidden).astype(">u2").tobytes())

    return save


def sixteen_bits(rgba: Pixels, path: Path) -> None:
    Image.fromarray(rgba[..., 0].astype(np.uint16) * 257).save(path)


def integers(rgba: Pixels, path: Path) -> None:
    Image.fromarray(rgba[..., 0].astype(np.int32) * 257).save(path)


def floats(rgba: Pixels, path: Path) -> None:
    Image.fromarray(rgba[..., 0].astype(np.float32) / 255).save(path)


def animated(rgba: Pixels, path: Path) -> None:
    later = [Image.fromarray(255 - rgba), Image.fromarray(rgba[::-1].copy())]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(rgba).save(path, save_all=True, append_images=later, **lossless)


def animated_gif(rgba: Pixels, path: Path) -> None:
    first, _ = palette_image(rgba)
    first.save(path, save_all=True, append_images=[first.transpose(Image.Transpose.ROTATE_90)])


def still_and_animated(rgba: Pixels, path: Path) -> None:
    """A PNG whose first picture is for viewers that cannot animate."""
    frames = [Image.fromarray(rgba), Image.fromarray(rgba[::-1].copy())]
    still = Image.fromarray(255 - rgba)
    still.save(path, save_all=True, append_images=frames, default_image=True)


# name: how it is saved, its pixels, and by how much a codec may change a level
OPAQUE: dict[str, tuple[Save, int]] = {
    "rgb.png": (as_mode("RGB"), 0),
    "rgb.bmp": (as_mode("RGB"), 0),
    "rgb.ppm": (as_mode("RGB"), 0),
    "rgb.tiff": (as_mode("RGB"), 0),
    "rgb.tga": (as_mode("RGB"), 0),
    "rgb.sgi": (as_mode("RGB"), 0),
    "rgb.pcx": (as_mode("RGB"), 0),
    "rgb.webp": (as_mode("RGB", lossless=True), 0),
    "rgb.jp2": (as_mode("RGB"), 0),
    "rgb.jpg": (as_mode("RGB", quality=100, subsampling=0), 3),
    "progressive.jpg": (as_mode("RGB", quality=100, subsampling=0, progressive=True), 3),
    "cmyk.jpg": (as_mode("CMYK", quality=100, subsampling=0), 5),
    "cmyk.tiff": (as_mode("CMYK"), 1),
    "ycbcr.tiff": (as_mode("YCbCr"), 3),
    "palette.png": (palette("none"), 0),
    "palette.gif": (palette("none"), 0),
    "pages.tiff": (animated, 0),
    "animated.gif": (animated_gif, 0),
}
if int(PIL.__version__.split(".")[0]) < 13:
    del OPAQUE["ycbcr.tiff"]  # Pillow 12 cannot read what it writes
TRANSPARENT: dict[str, tuple[Save, int]] = {
    "rgba.png": (as_mode("RGBA"), 1),
    "rgba.tiff": (as_mode("RGBA"), 1),
    "rgba.tga": (as_mode("RGBA"), 1),
    "rgba.webp": (as_mode("RGBA", lossless=True, exact=True), 1),
    "rgba.jp2": (as_mode("RGBA"), 1),
    "rgba.dds": (as_mode("RGBA"), 1),
    "rgba.ico": (as_mode("RGBA", sizes=[(SIZE, SIZE)]), 1),
    "palette.png": (palette("each"), 1),
    "animated.png": (animated, 1),
    "animated.webp": (animated, 1),
    "still and animated.png": (still_and_animated, 1),
}
HOLES: dict[str, tuple[Save, int]] = {
    "palette.gif": (palette("one"), 0),
    "palette.png": (palette("one"), 0),
    "rgb.png": (one_colour("RGB"), 0),
    "rgb16.png": (deep(16, rgb=True), 1),
}
GREY: dict[str, tuple[Save, int]] = {
    "l.png": (as_mode("L"), 0),
    "l.jpg": (as_mode("L", quality=100), 2),
    "16.png": (sixteen_bits, 0),
    "16.tiff": (sixteen_bits, 0),
    "16.pgm": (sixteen_bits, 0),
    "integers.tiff": (integers, 0),
    "floats.tiff": (floats, 0),
}
GREY_HOLES: dict[str, tuple[Save, int]] = {
    "l.png": (one_colour("L"), 0),
    "16.png": (deep(16), 1),
    "8.png": (deep(8), 0),
    "4.png": (deep(4), 0),
    "2.png": (deep(2), 0),
}
CASES = [
    pytest.param(Path(name), save, tolerance, options, id=f"{kind} {name}")
    for kind, cases, options in (
        ("opaque", OPAQUE, {}),
        ("transparent", TRANSPARENT, {"alpha": "any"}),
        ("holes", HOLES, {"alpha": "holes"}),
        ("grey", GREY, {"grey": True}),
        ("grey transparent", {"la.png": (as_mode("LA"), 1)}, {"grey": True, "alpha": "any"}),
        ("grey holes", GREY_HOLES, {"grey": True, "alpha": "holes"}),
    )
    for name, (save, tolerance) in cases.items()
]


def shown(path: Path) -> NDArray[np.int64]:
    """(32, 32, 3)"""
    return read_pixels(path, SIZE).transpose(1, 2, 0).astype(np.int64)


def picture(path: Path, seed: int, options: dict[str, object]) -> Pixels:
    """Blocks of levels that the file's depth can hold."""
    rgba = blocks(seed, **options)  # type: ignore[arg-type]
    if path.stem in ("2", "4"):
        step = 255 // (2 ** int(path.stem) - 1)
        hidden = 2 * step
        rgba[..., :3] = rgba[..., :3] // step * step
        rgba[rgba[..., 0] == hidden, :3] = 0  # only what is transparent has the hidden level
        rgba[rgba[..., 3] == 0, :3] = hidden
    return rgba


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "save", "tolerance", "options"), CASES)
def test_the_same_picture_in_any_format_gives_what_is_seen_on_white(
    tmp_path: Path, name: Path, save: Save, tolerance: int, options: dict[str, object], seed: int
) -> None:
    rgba = picture(name, seed, options)
    save(rgba, tmp_path / name)
    assert np.abs(shown(tmp_path / name) - white_page(rgba)).max() <= tolerance


def find_magick() -> str | None:
    """ImageMagick's command; other programs are called `convert`, too."""
    for name in ("magick", "convert-im6.q16", "convert"):
        path = shutil.which(name)
        command = [str(path), "-version"]
        if path and b"ImageMagick" in subprocess.run(command, capture_output=True).stdout:
            return path
    return None


MAGICK = find_magick()
# It reads the still picture; it scales 32 bits by their whole range, which leaves most files black.
NOT_MAGICK = {"still and animated.png", "integers.tiff"}


@pytest.mark.skipif(MAGICK is None, reason="ImageMagick is not installed")
@pytest.mark.parametrize(
    ("name", "save", "tolerance", "options"),
    [case for case in CASES if str(case.values[0]) not in NOT_MAGICK],
)
def test_imagemagick_shows_the_same(
    tmp_path: Path, name: Path, save: Save, tolerance: int, options: dict[str, object]
) -> None:
    save(picture(name, 0, options), tmp_path / name)
    flags = ["-auto-orient", "-background", "white", "-alpha", "remove", "-colorspace", "sRGB"]
    command = [str(MAGICK), f"{tmp_path / name}[0]", *flags, "-depth", "8", "rgb:-"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr.decode()[:100])
    theirs = np.frombuffer(done.stdout, np.uint8).reshape(SIZE, SIZE, 3).astype(int)
    assert np.abs(shown(tmp_path / name) - theirs).max() <= max(1, tolerance)


@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [("RGB", 0), ("RGBX", 0), ("CMYK", 1), ("YCbCr", 3), ("HSV", 8), ("P", 0), ("LAB", 40)],
)
def test_every_mode_in_memory(mode: str, tolerance: int) -> None:
    rgba = blocks(seed=3)
    image = Image.fromarray(rgba).convert("RGB")
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
        assert converted is not None
        converted.info.clear()
        image = converted
    elif mode == "P":
        image, _ = palette_image(rgba)
    else:
        image = image.convert(mode)
    difference = np.abs(np.asarray(on_white(image), int) - rgba[..., :3])
    assert difference.max() <= tolerance
    assert difference.mean() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_every_mode_with_transparency_in_memory(mode: str) -> None:
    rgba = blocks(seed=4, grey="L" in mode, alpha="any")
    image = Image.fromarray(rgba)
    if mode == "PA":
        image, alphas = palette_image(rgba)
        image.info["transparency"] = bytes(alphas)
        image = image.convert("PA")
    else:
        image = image.convert({"La": "LA"}.get(mode, "RGBA")).convert(mode)
    assert image.mode == mode
    assert np.abs(np.asarray(on_white(image)) - white_page(rgba)).max() <= 2


def test_bits_are_black_and_white() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(bool)
    seen = np.asarray(on_white(Image.fromarray(bits)))
    assert (seen == np.where(bits, 255, 0)[..., None]).all()


@settings(max_examples=100, deadline=None)
@given(
    low=st.floats(-1e6, 1e6, width=32),
    span=st.floats(2, 1e6, width=32),
    odd=st.sampled_from([np.nan, np.inf, -np.inf, None]),
)
def test_floats_are_scaled_from_their_smallest_to_their_largest(
    low: float, span: float, odd: float | None
) -> None:
    values = np.linspace(low, low + span, 256, dtype=np.float32).reshape(16, 16)
    exact = values.astype(np.float64)
    expected = (exact - exact.min()) / (exact.max() - exact.min()) * 255
    if odd is not None:
        values[8, 8] = odd
        expected[8, 8] = 255 if odd == np.inf else 0
    seen = np.asarray(on_white(Image.fromarray(values)), int)
    assert np.abs(seen - expected[..., None]).max() <= 1


@pytest.mark.parametrize("value", [0.0, 7.5, np.nan])
def test_an_even_image_of_floats_is_an_image(value: float) -> None:
    assert (
        on_white(Image.fromarray(np.full((4, 4), value, np.float32))).getpixel((0, 0)) is not None
    )


# EXIF 2.3, 4.6.4: what is done to the stored pixels.
ORIENTATIONS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.avif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_is_upright(tmp_path: Path, name: str, orientation: int) -> None:
    rgba = blocks(seed=5)
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"quality": 100, "subsampling": "4:4:4"} if name[2:] in ("jpg", "avif") else {}
    if name == "a.webp":
        options = {"lossless": True}
    Image.fromarray(rgba[..., :3]).save(tmp_path / name, exif=exif, **options)
    upright = ORIENTATIONS[orientation](rgba[..., :3]).astype(int)
    assert np.abs(shown(tmp_path / name) - upright).max() <= (4 if options else 0)


def test_a_large_photo_on_its_side_is_upright(tmp_path: Path) -> None:
    stored = np.zeros((600, 400, 3), np.uint8)
    stored[:300] = 255  # white on top; orientation 6 brings the top to the right
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif)
    assert shown(tmp_path / "a.jpg")[:, :14].max() < 8
    assert shown(tmp_path / "a.jpg")[:, 18:].min() > 247


# Colours


def swapped_profile() -> bytes:
    """sRGB with red and green exchanged, which is seen at once where profiles are honoured."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_honoured(tmp_path: Path, mode: str) -> None:
    rgba = blocks(seed=6, alpha="any" if mode == "RGBA" else "opaque")
    image = palette_image(rgba)[0] if mode == "P" else Image.fromarray(rgba).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=swapped_profile())
    expected = white_page(rgba[..., [1, 0, 2, 3]])
    assert np.abs(shown(tmp_path / "a.png") - expected).max() <= 2


def another_srgb() -> bytes:
    """sRGB as another program writes it: its red differs in the fourth decimal."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entry = profile.index(b"rXYZ")
    (offset,) = struct.unpack(">I", profile[entry + 4 : entry + 8])
    (red,) = struct.unpack(">i", profile[offset + 8 : offset + 12])
    profile[offset + 8 : offset + 12] = struct.pack(">i", red + 30)  # 65536 is 1
    return bytes(profile)


@pytest.mark.parametrize(
    "profile",
    [
        b"not a profile",
        another_srgb(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
)
def test_a_profile_that_says_nothing_changes_no_pixel(tmp_path: Path, profile: bytes) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=profile)
    assert (shown(tmp_path / "a.png") == noise).all()


@pytest.mark.parametrize(
    ("gamma", "chromium"),
    [
        (100_000, [0, 71, 99, 120, 137, 152, 165, 177, 188, 198, 208, 216, 225, 233, 241, 248]),
        (45_455, list(range(0, 256, 16))),
        (30_000, [0, 0, 3, 12, 25, 40, 55, 72, 89, 108, 127, 147, 167, 189, 211, 233]),
        (0, list(range(0, 256, 16))),
    ],
)
def test_the_gamma_of_a_png_is_honoured(tmp_path: Path, gamma: int, chromium: list[int]) -> None:
    ramp = np.arange(0, 256, 16)[None].repeat(16, 0)
    write_png(tmp_path / "a.png", ramp, 8, gAMA=struct.pack(">I", gamma))
    seen = read_pixels(tmp_path / "a.png", 16)
    assert np.abs(seen[:, 3].astype(int) - chromium).max() <= 1


def test_what_the_first_frame_of_a_gif_does_not_cover_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([200, 0, 0, 0, 0, 200] * 128)
    image.save(tmp_path / "a.gif", optimize=False)
    content = bytearray((tmp_path / "a.gif").read_bytes())
    content[6:10] = struct.pack("<HH", SIZE, SIZE)  # the canvas
    frame = content.index(b"," + struct.pack("<HHHH", 0, 0, 8, 8))
    content[frame + 1 : frame + 5] = struct.pack("<HH", 5, 9)  # left, top
    (tmp_path / "a.gif").write_bytes(content)
    expected = np.full((SIZE, SIZE, 3), 255)
    expected[9:17, 5:13] = (0, 0, 200)
    assert (shown(tmp_path / "a.gif") == expected).all()


# Size


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700), size=st.integers(1, 48))
def test_a_photo_is_decoded_small_but_at_least_twice_as_large_as_needed(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "photo.jpg"
    Image.new("RGB", (width, height), "teal").save(path)
    with patch.object(pixels, "on_white", wraps=on_white) as spy:
        assert read_pixels(path, size).shape == (3, size, size)
    decoded = spy.call_args.args[0].size
    assert min(decoded) >= min(width, height, 2 * size)
    assert min(decoded) < 4 * size + 8 or 8 * decoded[0] <= width + 8


def test_a_photo_decoded_small_looks_as_if_decoded_whole(tmp_path: Path) -> None:
    from sklearn.datasets import load_sample_image

    photo = Image.fromarray(load_sample_image("china.jpg"))
    photo.save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as whole:
        expected = np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BILINEAR), int)
    difference = np.abs(shown(tmp_path / "a.jpg") - expected)
    assert difference.mean() < 1.5
    assert difference.max() < 16


# What is refused


def test_no_format_that_starts_another_program_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="EPS")
    with (
        patch("subprocess.Popen", side_effect=AssertionError("Ghostscript was started")),
        pytest.raises(UnreadableError, match="none of the known image formats"),
    ):
        read_pixels(tmp_path / "a.png", SIZE)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1", b"hevc"])
def test_heic_is_refused_with_the_way_out(tmp_path: Path, brand: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(200))
    with pytest.raises(UnreadableError, match="HEIC") as error:
        read_pixels(tmp_path / "a.jpg", SIZE)
    if "HEIF" not in pixels._formats():
        assert "pip install pillow-heif" in str(error.value)


def test_avif_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x1cftypavif" + bytes(200))
    monkeypatch.setattr(pixels, "_formats", lambda: ["PNG"])
    for supported, remedy in ((True, ""), (False, "pip install --upgrade pillow, or ")):
        monkeypatch.setattr(pixels.features, "check", lambda name, answer=supported: answer)
        with pytest.raises(UnreadableError, match=f"^an AVIF image; {remedy}convert it"):
            read_pixels(tmp_path / "a.jpg", SIZE)


def test_heic_that_pillow_heif_cannot_read_is_not_told_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x24ftypheic" + bytes(200))
    monkeypatch.setattr(pixels, "_formats", lambda: ["PNG", "HEIF"])
    reason = pixels._reason(tmp_path / "a.jpg", UnidentifiedImageError())
    assert reason == "a HEIC image; convert it to JPEG or PNG"


def test_heic_is_read_with_pillow_heif(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    rgba = blocks(seed=7, alpha="any")
    pillow_heif.from_pillow(Image.fromarray(rgba)).save(tmp_path / "a.heic", quality=-1, chroma=444)
    assert np.abs(shown(tmp_path / "a.heic") - white_page(rgba)).max() <= 4


def test_an_image_above_the_limit_is_refused_with_its_size(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((1, 8), np.int64), 8)
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 19_000, 10_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableError, match="190 megapixels, at most 179 are read; make it"):
        read_pixels(tmp_path / "a.png", SIZE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "an empty file"), (b"hello", "none of the known image formats")],
)
def test_what_is_no_image_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableError, match=f"^{reason}$"):
        read_pixels(tmp_path / "a.png", SIZE)
