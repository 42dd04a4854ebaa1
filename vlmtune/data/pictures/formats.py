"""The formats that are tried: Pillow's full list starts Ghostscript for EPS files, among others."""

from functools import cache

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000", "HEIF")
KNOWN = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, ICO, AVIF, JPEG 2000; HEIC with the package pillow-heif"


@cache
def readable_formats() -> list[str]:
    """Those of `FORMATS` that Pillow reads here."""
    from PIL import Image

    Image.init()
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
