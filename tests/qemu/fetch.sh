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
PACKAGES=(qemu-system-x86 seabios)
home=$(cd "$(dirname "$0")/../.." && pwd)/build/qemu
program=$home/$SUITE/qemu-system-x86_64

cannot() {
    echo "no QEMU of $SUITE: $1" >&2
    exit 2
}

if [ -x "$program" ]; then
    echo "$program"
    exit
fi

command -v apt-get >/dev/null || cannot 'no apt-get here'
[ "$(dpkg --print-architecture)" = amd64 ] || cannot 'not an amd64 Debian'
own=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
# shellcheck disable=SC2016  # they are apt's, not the shell's
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v own="$own" '$2 == own && $3 == "main" { print $1; exit }')
[ -n "$mirror" ] || cannot "no apt source for this machine's own Debian release"
for keyring in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg} ''; do
    [ ! -e "$keyring" ] || break
done
[ -n "$keyring" ] || cannot "Debian's keyring is not installed (debian-archive-keyring)"

mkdir -p "$home"
work=$(mktemp -d "$home/fetching.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,archives}/partial "$work"/log
touch "$work/status"
release() {
    echo "deb [arch=amd64 signed-by=$keyring] $mirror $1 main"
}
# An apt of its own, but for how the machine reaches the network. Read last, so that what it clears stays cleared.
cat >"$work/apt.conf" <<CONF
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::State::extended_states "$work/extended_states";
Dir::Cache::archives "$work/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Log "$work/log";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
CONF
apt=(apt-get -c "$work/apt.conf" -qq)

{ release trixie; release trixie-backports; } >"$work/sources.list"
# Where the machine's own release cannot be had either, it is the network.
if ! "${apt[@]}" update >"$work/said" 2>&1; then
    release "$own" >"$work/sources.list"
    "${apt[@]}" update >/dev/null 2>&1 || cannot "the mirror that this machine's apt names cannot be reached"
    cat "$work/said" >&2
    echo "no QEMU of $SUITE: apt-get update has $own, but not trixie and its backports" >&2
    exit 1
fi
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
