"""What a file is that is no picture, by how it begins: people name what they have, and the way out differs."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")
_VIDEO = ("a video", "save pictures of it")
_BEGINNINGS = (  # in small letters
    (b"%pdf", "a PDF document", "save its pages as PNG"),
    (b"<svg", "an SVG drawing", "save it as PNG"),
    (b"<!doctype html", "a web page: the download went wrong", "download the picture again"),
    (b"<html", "a web page: the download went wrong", "download the picture again"),
    (b"version https://git-lfs.github.com", "a Git LFS pointer, not the picture", "run git lfs pull in its repository"),
    (b"8bps", "a Photoshop document", "save it as PNG"),
    (b"\xff\x0a", "a JPEG XL picture", "save it as PNG or JPEG"),
    (b"\0\0\0\x0cjxl ", "a JPEG XL picture", "save it as PNG or JPEG"),
    (b"pk\x03\x04", "a ZIP archive", "unpack it"),
    (b"\x1ae\xdf\xa3", *_VIDEO),
    (b"\x89hdf", "an HDF5 file", "save the picture in it as PNG"),
    (b"\x93numpy", "a NumPy array", "save it as PNG"),
)
HEAD_BYTES = 512


def is_heic(head: bytes) -> bool:
    """Whether a file that begins so holds a HEIC picture, as iPhones take them."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC


def what_it_is(head: bytes) -> tuple[str, str] | None:
    """What a file that begins so is, and the way out; None where nobody knows."""
    if is_heic(head):
        return "a HEIC picture", "pip install pillow-heif, or save it as JPEG"
    if head[4:8] == b"ftyp":
        return ("an AVIF picture", "pip install 'pillow>=11.3'") if head[8:12] in _AVIF else _VIDEO
    if head[128:132] == b"DICM":
        return "a DICOM file", "save its picture as PNG, by the window that a reader would look at"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<?xml") and b"<svg" in text:
        return "an SVG drawing", "save it as PNG"
    return next(((what, way_out) for start, what, way_out in _BEGINNINGS if text.startswith(start)), None)
