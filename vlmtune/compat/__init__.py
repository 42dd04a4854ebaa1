"""Every name of a library that the library does not promise to keep; nothing else in vlmtune may use one."""
