"""What pyproject.toml cannot express of the build: the C extensions' flags, whether they are built, and an sdist that is repeatable."""

from __future__ import annotations

import gzip
import hashlib
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


def built_from(folder: Path) -> str:
    """What a module is built from, in two words, which ``aioirqfd doctor`` compares: the C sources of a checkout, else the Python files."""

    def digest(*patterns: str) -> str:
        files = sorted(one for pattern in patterns for one in folder.rglob(pattern))
        return hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()[:16]

    return f"{digest('*.c', '*.h')} {digest('*.py')}"


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
            # Of its twin, too: the two belong together, and what was built beside another one says so.
            depends=sorted(str(one) for pattern in ("*.h", "*.py") for one in folder.rglob(pattern)),
            define_macros=[("AIOIRQFD_BUILT_FROM", f'"{built_from(folder)}"')],
            extra_compile_args=flags,
            # Without a compiler the install goes on and the pure-Python twin is used. CI checks that the C module is live.
            optional=True,
        )
        for folder in FOLDERS
    ]


class RepeatableSdist(sdist):
    """An sdist whose bytes hang on the sources alone: sorted, nobody's, and of the time in SOURCE_DATE_EPOCH, or of 1980."""

    def make_archive(self, base_name: str, *_: object, base_dir: str, **__: object) -> str:  # type: ignore[override]
        """Make BASE_NAME.tar.gz, the one format there is here, of the directory."""
        when = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))
        made = Path(f"{base_name}.tar.gz")
        with (
            made.open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=when) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path in sorted(one for one in Path(base_dir).rglob("*") if one.is_file()):
                member = tarfile.TarInfo(str(path))
                member.size = path.stat().st_size
                member.mtime = when
                member.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                with path.open("rb") as content:
                    archive.addfile(member, content)
        return str(made)


setup(ext_modules=extensions(), cmdclass={"sdist": RepeatableSdist})
