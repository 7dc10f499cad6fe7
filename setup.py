"""The build switches that pyproject.toml cannot express: which flags the C extension gets, and whether it is built at all."""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup

# In each folder the sources of one module, _native.
FOLDERS = (Path("aioirqfd/counter"), Path("aioirqfd/virtio/fast"))
STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]


def switched_on(name: str) -> bool:
    """Whether the environment variable is set to anything but the empty string or 0."""
    return os.environ.get(name, "") not in {"", "0"}


def extensions() -> list[Extension]:
    """The C modules, or nothing under AIOIRQFD_NO_EXTENSION=1 (the py3-none-any wheel)."""
    if switched_on("AIOIRQFD_NO_EXTENSION"):
        return []
    # Only PyInit__native is for others to see; what the files share among themselves stays inside.
    flags = ["-std=c11", "-O2", "-fvisibility=hidden"]
    if switched_on("AIOIRQFD_WERROR"):
        flags += STRICT
    return [
        Extension(
            ".".join((*folder.parts, "_native")),
            sources=sorted(str(source) for source in folder.glob("*.c")),
            depends=sorted(str(header) for header in folder.glob("*.h")),
            extra_compile_args=flags,
            # Without a compiler the install goes on and the pure-Python twin is used. CI checks that the C module is live.
            optional=True,
        )
        for folder in FOLDERS
    ]


setup(ext_modules=extensions())
