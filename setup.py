"""What pyproject.toml cannot express of the build: the C extensions' flags, whether they are built, and an sdist that is repeatable."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

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


class RepeatableSdist(sdist):
    """An sdist whose bytes hang on the sources alone: sorted, nobody's, and of the time that SOURCE_DATE_EPOCH says (1980 without)."""

    def make_archive(self, base_name: str, format: str, root_dir: object = None, base_dir: object = None, **_: object) -> str:  # type: ignore[override]  # noqa: A002
        """Make BASE_NAME.tar.gz of the directory, the one format there is here."""
        when = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))
        name = f"{base_name}.tar.gz"
        with (
            open(name, "wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=when) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path in sorted(Path(str(base_dir)).rglob("*")):
                member = archive.gettarinfo(path)
                member.type = tarfile.DIRTYPE if path.is_dir() else tarfile.REGTYPE  # setuptools links; so may be their twins
                member.size = 0 if path.is_dir() else path.stat().st_size
                member.linkname = member.uname = member.gname = ""
                member.uid = member.gid = 0
                member.mtime = when
                member.mode = 0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644
                with path.open("rb") if path.is_file() else open(os.devnull, "rb") as content:
                    archive.addfile(member, content)
        return name


setup(ext_modules=extensions(), cmdclass={"sdist": RepeatableSdist})
