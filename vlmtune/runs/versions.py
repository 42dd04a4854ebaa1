"""The versions of the libraries that decide what a run does."""

LIBRARIES = ("torch", "torchvision", "transformers", "peft", "bitsandbytes", "accelerate")


def library_versions() -> dict[str, str]:
    """Return the versions of Python, vlmtune and its libraries, read from package metadata without importing them."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from vlmtune import __version__

    versions = {"python": platform.python_version(), "vlmtune": __version__}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return versions
