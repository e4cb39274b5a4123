"""The upper rows of a JPEG are those of the whole one, bit for bit; damage above them is still noticed."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitlight.data import jpeg
from vitlight.data.jpeg import DamagedJpegError, decode_rows, decode_whole


def encoded(height: int, width: int, mode: str = "RGB", **options) -> bytes:
    rng = np.random.default_rng([height, width])
    small = rng.integers(0, 255, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", **{"quality": 90, **options})
    return buffer.getvalue()


def whole(data: bytes, channels: int = 3, factor: int = 1) -> np.ndarray:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    return simplejpeg.decode_jpeg(
        data,
        {1: "GRAY", 3: "RGB"}[channels],
        fastdct=False,
        fastupsample=True,
        min_height=-(-height // factor),
        min_width=-(-width // factor),
        min_factor=factor,
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_rows_equal_those_of_the_whole_image(data):
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    options = {
        "subsampling": data.draw(st.sampled_from([0, 1, 2])),
        "progressive": data.draw(st.booleans()),
        "quality": data.draw(st.sampled_from([30, 90])),
        "restart_marker_rows": data.draw(st.sampled_from([0, 1])),
    }
    mode = data.draw(st.sampled_from(["RGB", "L"]))
    if mode == "L":
        del options["subsampling"]
    image = encoded(height, width, mode, **options)
    last_row = data.draw(st.integers(1, height))
    channels, factor = data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from([1, 2, 4, 8]))
    rows = decode_rows(image, channels, height, width, last_row, factor)
    exact = whole(image, channels, factor)
    assert -(-last_row // factor) <= len(rows) <= len(exact)
    assert np.array_equal(rows, exact[: len(rows)])


@pytest.mark.parametrize(("options", "num_rows"), [({}, 64), ({"subsampling": 0}, 56), ({"progressive": True}, 200)])
def test_no_more_rows_are_decoded_than_coding_units_need(options, num_rows):
    assert decode_rows(encoded(200, 120, **options), 3, 200, 120, 50).shape == (num_rows, 120, 3)


def test_what_comes_before_the_last_row_is_all_that_counts():
    data = encoded(400, 300)
    exact = whole(data)
    below = data[:-3000] + bytes(2998) + data[-2:]
    assert np.array_equal(decode_rows(below, 3, 400, 300, 200), exact[:208])
    with pytest.raises(DamagedJpegError, match="premature end"):
        decode_rows(below, 3, 400, 300, 400)
    start = data.index(b"\xff\xda") + 14
    with pytest.raises(DamagedJpegError, match="premature end"):
        decode_rows(data[: start + 2000] + b"\xff\xd9", 3, 400, 300, 200)


@pytest.mark.parametrize("cut", [2, 3, 10, 60, 160, 163, 165, 170])
def test_headers_that_break_off_are_refused(cut):
    data = encoded(40, 40)
    assert jpeg._frame_header(data) == (158, 16)
    with pytest.raises(ValueError, match=r"\w"):
        decode_rows(data[:cut], 3, 40, 40, 8)


def test_left_over_bytes_are_no_damage_but_missing_ones_are():
    data = encoded(400, 300)
    assert np.array_equal(decode_whole(data[:-2] + b"abcdef" + data[-2:], 3), decode_whole(data, 3))
    for damaged in (data[:-100], data[:-100] + data[-2:], data[:737] + bytes(5000) + data[5737:]):
        with pytest.raises(DamagedJpegError, match=r"[Pp]remature end"):
            decode_whole(damaged, 3)
