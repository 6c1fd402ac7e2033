#!/bin/sh
# Makes a minimal tree of the Debian that this machine runs, once: bare_tree.sh DIR [PACKAGE...]
# Nothing is in it that a node would not have: no compiler, none of this repository, and no
# Python but where it is among the packages.  Run it with mounts of its own (unshare -m).
set -eu
tree=$1
shift
[ ! -e "$tree/rfaas-ready" ] || exit 0
. /etc/os-release
rm -rf "$tree"
if [ $# = 0 ]; then
    # The archive that this machine itself is set up to ask.
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null |
        tr ' ' '\n' | grep -m 1 '^[a-z+]*://.*debian/*$')
    mkdir -p "${tree%/*}"
    debootstrap --variant=minbase "$VERSION_CODENAME" "$tree" "$mirror"
else
    minimal=${tree%/*}/minimal
    "$0" "$minimal"
    cp -a "$minimal" "$tree"
    rm "$tree/rfaas-ready"
    cp -r /etc/apt/apt.conf.d/. "$tree/etc/apt/apt.conf.d/"
    mount -t proc proc "$tree/proc"
    chroot "$tree" apt-get update
    DEBIAN_FRONTEND=noninteractive chroot "$tree" apt-get -y --no-install-recommends install "$@"
fi
rm -rf "$tree/var/lib/apt/lists" "$tree/var/cache/apt"
: >"$tree/rfaas-ready"
