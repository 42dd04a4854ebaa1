"""What libraries read of the environment when they are imported: checked once, before any of them takes it amiss.

PyTorch ends the process by a signal, others by a traceback. What is not set, or empty, is as it should be.
"""

import os
import re
import sys
from collections.abc import Mapping

from vlmtune.errors import VlmtuneError

_NUMBERS = (r"[0-9]{1,9}", "a whole number")
_ALLOCATOR = (
    r"\w+:(\[.*\]|[^,]+)(,\w+:(\[.*\]|[^,]+))*,?",
    "options such as expandable_segments:True",
)
_ADDRESS = (r"https?://\S+", "an address that begins with https://")
_GPU = r"(-?[0-9]+|(GPU|MIG)-[\w/-]+)"
FORMS = {
    "HF_HUB_ETAG_TIMEOUT": _NUMBERS,
    "HF_HUB_DOWNLOAD_TIMEOUT": _NUMBERS,
    "HF_ENDPOINT": _ADDRESS,
    "OMP_NUM_THREADS": (r"[1-9][0-9]{0,4}(,[1-9][0-9]{0,4})*", "a number of threads"),
    "PYTORCH_ALLOC_CONF": _ALLOCATOR,
    "PYTORCH_CUDA_ALLOC_CONF": _ALLOCATOR,
    "CUDA_VISIBLE_DEVICES": (rf"{_GPU}(,{_GPU})*,?|NoDevFiles", "numbers of GPUs, or their UUIDs"),
}
"""The form of each value, and that in words."""


def check_environment(variables: Mapping[str, str] = os.environ, names_encoding: str | None = None) -> None:
    """Raise for a value that no library could take, or a locale in which files cannot be named.

    `names_encoding` is that of the names of files: this process's, if it is not given.
    """
    for name, (form, words) in FORMS.items():
        value = variables.get(name, "").strip()
        if value and not re.fullmatch(form, re.sub(r"\s*,\s*", ",", value)):
            raise VlmtuneError(f"the environment variable {name} is {value!r}: it must be {words}", f"unset {name}")
    encoding = names_encoding or sys.getfilesystemencoding()
    if encoding.lower() not in ("utf-8", "utf8"):
        raise VlmtuneError(
            f"names of files are {encoding} in this locale, not UTF-8",
            "set LC_ALL=C.UTF-8, and leave PYTHONUTF8 and PYTHONCOERCECLOCALE unset",
        )
