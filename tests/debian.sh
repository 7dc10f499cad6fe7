# shellcheck shell=bash
# To be sourced: packages of another Debian release, without a change to the machine and without being root.
#
#     own_apt WORK RELEASE...    makes $apt, an apt of its own in the directory WORK, whose lists have these releases
#
# The packages come from the mirror that this machine's apt has for its own release, checked by the signatures of Debian's keyring.
# What cannot be had here is said by the caller's function `cannot REASON`, which ends the script.

own_apt() {
    local work=$1 own mirror keyring release
    shift
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

    mkdir -p "$work"/{lists,archives}/partial "$work"/log
    touch "$work/status"
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

    for release; do apt_source "$release"; done >"$work/sources.list"
    "${apt[@]}" update >"$work/said" 2>&1 && return
    # Where the machine's own release cannot be had either, it is the network.
    apt_source "$own" >"$work/sources.list"
    "${apt[@]}" update >/dev/null 2>&1 || cannot "the mirror that this machine's apt names cannot be reached"
    cat "$work/said" >&2
    echo "apt-get update has $own, but not $*" >&2
    exit 1
}

# Within own_apt: the lines of a release, its sources where SOURCES is set.
apt_source() {
    echo "deb${SOURCES:+-src} [arch=amd64 signed-by=$keyring] $mirror $1 main"
}
