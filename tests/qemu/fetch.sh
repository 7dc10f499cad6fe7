#!/bin/bash
# A newer QEMU of Debian's beside the installed one, for the tests: prints the program's path.
#
#     AIOIRQFD_QEMU=$(tests/qemu/fetch.sh trixie) make test-c ARGS='-m qemu'
#
# SUITE is trixie (Debian 13: QEMU 10) or trixie-backports (QEMU 11). The packages come from the mirror that this machine's apt has
# for its own, go to build/qemu/SUITE, and run from there by their own loader. Nothing on the machine changes, and nobody has to be
# root. What is there already is taken; remove the directory to have it fetched anew.
#
# Exit status: 1 it should have worked and has not; 2 it cannot be had here, and a line says why.
set -euo pipefail

SUITE=${1:?SUITE: trixie or trixie-backports}
# shellcheck source=tests/debian.sh
. "$(dirname "$0")/../debian.sh"
PACKAGES=(qemu-system-x86 seabios)
home=$(cd "$(dirname "$0")/../.." && pwd)/build/qemu
program=$home/$SUITE/qemu-system-x86_64

cannot() {
    echo "no QEMU of $SUITE: $1" >&2
    exit 2
}

# Where it lacks a module (for a window, or sound) it would look among the installed QEMU's, and one of another build ends it at once. In a
# fetched copy the directory has another name, as long as the old one.
modules=/usr/lib/x86_64-linux-gnu/qemu nowhere=/nonexistent/x86_64-linux/qemu
renamed() { grep -qaF "$nowhere" "$1/usr/bin/qemu-system-x86_64"; }

if [ -x "$program" ] && renamed "$home/$SUITE"; then
    echo "$program"
    exit
fi

mkdir -p "$home"
work=$(mktemp -d "$home/fetching.XXXXXX")
trap 'rm -rf "$work"' EXIT
own_apt "$work" trixie trixie-backports
if ! "${apt[@]}" install --yes --no-install-recommends --download-only --target-release "$SUITE" "${PACKAGES[@]}" >"$work/said" 2>&1; then
    cat "$work/said" >&2
    echo "no QEMU of $SUITE: its packages cannot be fetched" >&2
    exit 1
fi
mkdir "$work/root"
for package in "$work"/archives/*.deb; do
    dpkg-deb --extract "$package" "$work/root"
done
# Of what was unpacked, what runs is under usr/lib, usr/bin and these; the rest is documentation.
find "$work/root/usr/share" -mindepth 1 -maxdepth 1 ! -name qemu ! -name seabios -exec rm -rf {} +
LC_ALL=C sed -i "s#$modules#$nowhere#g" "$work/root/usr/bin/qemu-system-x86_64"
renamed "$work/root"
cat >"$work/root/qemu-system-x86_64" <<'PROGRAM'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")
libraries=$root/usr/lib/x86_64-linux-gnu
QEMU_MODULE_DIR=$libraries/qemu exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$root/usr/bin/qemu-system-x86_64" \
    -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
PROGRAM
chmod +x "$work/root/qemu-system-x86_64"
"$work/root/qemu-system-x86_64" --version >/dev/null
rm -rf "${home:?}/$SUITE"
mv "$work/root" "$home/$SUITE"
echo "$program"
