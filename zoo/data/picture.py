"""Picture files of any kind, as cameras and programs write them: opened safely, upright, and as RGB."""

from __future__ import annotations

import contextlib
import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from zoo.core.errors import DataError

# Pillow reads more, by running other programs (EPS) or in formats that no camera or drawing program writes.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "ICO", "PCX", "JPEG2000", "AVIF", "QOI")
MAX_PIXELS = 120_000_000  # 108-megapixel phones; a small file that claims more is a bomb
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".tga", ".jp2", ".avif",
            ".qoi")  # fmt: skip
"""By which picture files are found in a folder."""


def open_picture(path: str | os.PathLike[str], least: int | None = None) -> Image.Image:
    """The first frame of a picture file, upright (EXIF).

    least: a JPEG may be decoded smaller, where both its sides stay this long. Raises DataError when the file is
    missing, not a picture, broken, or too large.
    """
    name = os.fspath(path)
    what = f"cannot read {name}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own opinion of the size, of odd tags and of palettes
            with open(name, "rb") as file:
                if not file.read(1):
                    raise DataError(what, "the file is empty", "Give an image file.")
                file.seek(0)
                Image.init()
                image: Image.Image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
                if image.width * image.height > MAX_PIXELS:
                    raise _too_large(what, f"it claims {image.width} x {image.height} pixels")
                if least is not None:
                    image.draft(image.mode if image.mode in ("L", "RGB") else None, (least, least))
                image.load()
                with contextlib.suppress(Exception):  # a broken EXIF block is no reason to refuse a picture
                    image = ImageOps.exif_transpose(image)
                return image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(what, "there is no such file", "Check the path.") from None
    except IsADirectoryError:
        raise DataError(what, "it is a directory", "Name the image files, as in DIR/*.png.") from None
    except PermissionError:
        raise DataError(what, "this user may not read the file", "Check its rights.") from None
    except Image.UnidentifiedImageError:
        raise DataError(
            what,
            "it is not an image, or of a format that is not read here",
            "PNG, JPEG, GIF, BMP, WebP, TIFF, PPM and a few more are read.",
        ) from None
    except (Image.DecompressionBombError, MemoryError):
        raise _too_large(what, "it claims more pixels than fit in memory") from None
    except Exception as error:  # a broken file can raise nearly anything from Pillow's decoders
        raise DataError(
            what, f"the image is damaged or cut short ({error or type(error).__name__})", "Save or fetch it again."
        ) from None


def _too_large(what: str, why: str) -> DataError:
    return DataError(what, why, f"Reduce it first: more than {MAX_PIXELS // 10**6} million pixels are refused.")


def open_rgb(path: str | os.PathLike[str], least: int | None = None) -> Image.Image:
    """`open_picture` as RGB: what is transparent is laid on white, 16 bits and more are brought to 8."""
    image = open_picture(path, least)
    if "transparency" in image.info or image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode.startswith(("I", "F")):  # Pillow would cut these off at 255
        values = np.asarray(image.convert(image.mode[0]), np.float64)
        if not np.isfinite(values).all():
            raise DataError(
                f"cannot read {os.fspath(path)}", "it holds values that are not numbers", "Save it as an 8-bit image."
            )
        high = float(values.max())
        if image.mode == "F":
            white_is = 1.0 if high <= 1 else 255.0 if high <= 255 else 65535.0
        else:
            white_is = 255.0 if high <= 255 and not image.mode.startswith("I;16") else 65535.0
        image = Image.fromarray(np.rint(np.clip(values / white_is, 0, 1) * 255).astype(np.uint8))
    return image.convert("RGB")
