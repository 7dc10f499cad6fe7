#!/bin/bash
# Debian's kernel for virtual machines, and busybox: prints the directory under which both are.
#
# What is installed is taken, and / is the answer. Otherwise the packages come from the mirror that this machine's apt has, and are
# unpacked in build/linux/root. Nothing on the machine changes, and nobody has to be root.
#
# Exit status: 1 it should have worked and has not; 2 it cannot be had here, and a line says why.
set -euo pipefail

root=${ROOT:-/}
for kernel in "$root"/boot/vmlinuz-*-cloud-amd64; do
    if [ -e "$kernel" ] && [ -d "$root/lib/modules/${kernel##*/vmlinuz-}" ] && [ -e "$root/bin/busybox" ]; then
        echo "$root"
        exit
    fi
done
tree=$(cd "$(dirname "$0")/../../.." && pwd)
home=$tree/build/linux
if [ -e "$home/root" ]; then
    echo "$home/root"
    exit
fi

# shellcheck source=tests/debian.sh
. "$tree/tests/debian.sh"

cannot() {
    echo "no kernel for the guest: $1; on Debian: apt-get install linux-image-cloud-amd64 busybox-static" >&2
    exit 2
}

echo "== fetching Debian's kernel for virtual machines, and busybox, into $home" >&2
mkdir -p "$home"
work=$(mktemp -d "$home/fetching.XXXXXX")
trap 'rm -rf "$work"' EXIT
own_apt "$work" "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)"
# The package of that name only says which kernel is the newest.
image=$(apt-cache -c "$work/apt.conf" depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
(cd "$work/archives" && "${apt[@]}" download "$image" busybox-static) >"$work/said" 2>&1 || {
    cat "$work/said" >&2
    cannot "$image and busybox-static cannot be fetched"
}
mkdir "$work/root"
for package in "$work"/archives/*.deb; do
    dpkg-deb --extract "$package" "$work/root"
done
# Where they are in later releases, they are to be found at the old place, too.
for directory in bin lib; do
    [ -e "$work/root/$directory" ] || ln -s "usr/$directory" "$work/root/$directory"
done
"$work/root/bin/busybox" depmod -b "$work/root" "${image#linux-image-}"
mv "$work/root" "$home/root"
echo "$home/root"
