"""Images behind http(s) addresses, fetched only with `data.allow_urls`; nothing is written to disk."""

import http.client
import time
import urllib.request

from vlmtune.data.types import RowProblem

TIMEOUT_S = 30.0
MAX_DOWNLOAD_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20


def fetch(url: str) -> bytes:
    """The bytes behind an http(s) address; raises `RowProblem`."""
    deadline_s = time.monotonic() + TIMEOUT_S
    data = bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "vlmtune"})
        with _opener().open(request, timeout=TIMEOUT_S) as response:
            while chunk := response.read1(_CHUNK_BYTES):
                data += chunk
                if len(data) > MAX_DOWNLOAD_BYTES:
                    raise RowProblem(f"image {url} is larger than {MAX_DOWNLOAD_BYTES // 2**20} MiB")
                if time.monotonic() > deadline_s:
                    raise RowProblem(f"image {url} took longer than {TIMEOUT_S:.0f} s")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RowProblem(f"image {url} cannot be fetched: {error}", "download it and write its path") from None
    return bytes(data)


def _opener() -> urllib.request.OpenerDirector:
    """An opener without file, ftp and data handlers, so that a redirect cannot reach them either."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener
