"""Names of huggingface_hub: a download that goes on where the last process ended."""

from vlmtune.compat.borrowed import Name
from vlmtune.compat.libraries import HUGGINGFACE_HUB

HTTP_GET = Name(
    HUGGINGFACE_HUB,
    "huggingface_hub.file_download.http_get",
    "it goes on within a file; the public functions begin anew in each process.",
    takes="url, temp_file, *, resume_size, headers, expected_size, tqdm_class",
)
REPO_FOLDER_NAME = Name(
    HUGGINGFACE_HUB,
    "huggingface_hub.file_download.repo_folder_name",
    "where in the cache a model lies.",
    takes="*, repo_id, repo_type",
)
WEAK_FILE_LOCK = Name(
    HUGGINGFACE_HUB,
    "huggingface_hub.utils.WeakFileLock",
    "the lock that its own downloads of the same file take.",
    takes="lock_file",
)
