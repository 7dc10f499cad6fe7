#!/bin/bash
# A free-threaded CPython for the tests, which Debian has as source only: prints the interpreter's path.
#
#     make test-c PYTHON=$(tests/python/build.sh 3.13t) VENV=.venv-3.13t
#
# VARIANT is 3.13t, or 3.13t-tsan, the same under ThreadSanitizer. The source is the upstream half of Debian 13's own package
# python3.13, without Debian's patches, which are about where Debian's packages go. It takes about five minutes on two cores, goes
# to build/python-VARIANT, and runs from there: the directory is not to be moved. Nothing on the machine changes, and nobody has to be
# root. What is there already is taken; remove the directory to have it built anew.
#
# Exit status: 1 it should have worked and has not; 2 it cannot be had here, and a line says why.
set -euo pipefail

VARIANT=${1:?VARIANT: 3.13t or 3.13t-tsan}
# shellcheck source=tests/debian.sh
. "$(dirname "$0")/../debian.sh"
build=$(cd "$(dirname "$0")/../.." && pwd)/build
home=$build/python-$VARIANT
program=$home/bin/python3.13t
run=()
options=(--disable-gil --disable-test-modules --with-ensurepip=install)

cannot() {
    echo "no Python $VARIANT: $1" >&2
    exit 2
}

case $VARIANT in
    3.13t) ;;
    # setarch -R: ThreadSanitizer's fixed shadow does not fit every randomised layout.
    3.13t-tsan) run=(setarch -R) options+=(--with-thread-sanitizer) ;;
    *) cannot 'it is 3.13t or 3.13t-tsan' ;;
esac

if [ -x "$program" ]; then
    echo "$program"
    exit
fi

command -v gcc >/dev/null || cannot 'no gcc here'
# Without these pip fetches nothing, and ctypes, which the package imports, is not there.
for header in openssl/ssl.h ffi.h zlib.h; do
    echo "#include <$header>" | gcc -E - >/dev/null 2>&1 || cannot "no $header here (apt-get install libssl-dev libffi-dev zlib1g-dev)"
done

mkdir -p "$build"
work=$(mktemp -d "$build/python-$VARIANT.XXXXXX")
trap 'rm -rf "$work"' EXIT
SOURCES=1 own_apt "$work" trixie
(cd "$work" && "${apt[@]}" source --download-only python3.13) >"$work/said" 2>&1 || {
    cat "$work/said" >&2
    echo "no Python $VARIANT: its source cannot be fetched" >&2
    exit 1
}
mkdir "$work/source"
tar -xf "$work"/python3.13_*.orig.tar.xz -C "$work/source" --strip-components=1
cd "$work/source"
{
    "${run[@]}" ./configure --prefix="$home" "${options[@]}" &&
        "${run[@]}" nice make -j2 &&
        rm -rf "$home" &&
        "${run[@]}" make install
} >"$work/said" 2>&1 </dev/null || {
    tail -n 40 "$work/said" >&2
    rm -rf "$home"
    echo "no Python $VARIANT: it cannot be built" >&2
    exit 1
}
"${run[@]}" "$program" -c 'import ctypes, ensurepip, ssl, sys, zlib; assert not sys._is_gil_enabled()'
echo "$program"
