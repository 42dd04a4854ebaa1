"""The formats that are tried: Pillow's full list starts Ghostscript for EPS files, among others."""

from functools import cache
from importlib import import_module

READERS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "ICO": "IcoImagePlugin",
    "AVIF": "AvifImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
}
"""Pillow's module for each; loading all fifty takes longer than to look at a thousand pictures."""
FORMATS = (*READERS, "HEIF")
KNOWN = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, ICO, AVIF, JPEG 2000; HEIC with the package pillow-heif"


@cache
def readable_formats() -> list[str]:
    """Those of `FORMATS` that Pillow reads here."""
    from PIL import Image

    for module in READERS.values():
        import_module(f"PIL.{module}")
    return [name for name in FORMATS if name in Image.OPEN]


@cache
def register_heic() -> None:
    """Let Pillow read HEIC, where the library for it is."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()
    readable_formats.cache_clear()
