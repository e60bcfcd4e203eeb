"""Encoded images: Pillow checks what they are and how large, before anything is decoded."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from PIL import Image

from amaml_tf.tasks.corrupt import CorruptData

#: Larger files are refused unread.
MOST_BYTES = 2**25
#: TensorFlow decodes these. Pillow turns the others into PNG.
DECODED = ("PNG", "JPEG")
FORMATS = (*DECODED, "BMP", "GIF")

# What Pillow raises for damaged files: its plugins let errors of their parsers pass.
_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_EXPECTED = "an image in PNG, JPEG, BMP or GIF"


class EncodedImage(NamedTuple):
    """An image as it is stored.

    Attributes:
        where: it is stored, for messages.
        data: the encoded image; a text if it could not be read, which says why.
        label: number of its class.
    """

    where: str
    data: bytes | str
    label: int


class CheckedImage(NamedTuple):
    """An encoded image that can be decoded, as far as its header tells.

    Attributes:
        encoded: PNG or JPEG.
        pixels: height times width.
    """

    encoded: EncodedImage
    pixels: int


def checked(
    images: Iterable[EncodedImage],
    corrupt: CorruptData,
    stored_size: tuple[int, int] | None = None,
) -> Iterator[CheckedImage]:
    """Yields the images that can be decoded, and leaves out the others.

    A decompression bomb, a small file that stands for a huge image, is found by its header: more
    pixels than Pillow's own limit (`PIL.Image.MAX_IMAGE_PIXELS`, 89 million) are refused.

    Args:
        images: the encoded images.
        corrupt: counts what is left out, or raises UsageError.
        stored_size: height and width that all must have; None: any.
    """
    for image in images:
        if isinstance(image.data, str):
            corrupt.leave_out(image.where, _EXPECTED, image.data)
            continue
        try:
            data, height, width = _opened(image.data)
        except _ERRORS as error:
            corrupt.leave_out(image.where, _EXPECTED, _reason(error))
            continue
        if stored_size is not None and (height, width) != stored_size:
            expected = f"an image of {stored_size[0]}x{stored_size[1]} pixels"
            corrupt.leave_out(image.where, expected, f"{height}x{width}")
            continue
        yield CheckedImage(image._replace(data=data), height * width)


def _opened(data: bytes) -> tuple[bytes, int, int]:
    """Returns the image as PNG or JPEG, its height and its width."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.format not in DECODED:
                png = io.BytesIO()
                image.convert("RGB").save(png, "PNG")
                data = png.getvalue()
            return data, image.height, image.width


def _reason(error: BaseException) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "a decompression bomb, an image of too many pixels"
    if isinstance(error, Image.UnidentifiedImageError):
        return "something else"
    return f"a broken one ({' '.join(str(error).split()):.100})"
