#!/bin/sh
# Makes a minimal tree of the Debian that this machine runs, once: bare_tree.sh DIR [PACKAGE...]
# Nothing is in it that a node would not have: no compiler, none of this repository, and no
# Python but where it is among the packages.
set -eu
tree=$1
shift
[ ! -e "$tree/rfaas-ready" ] || exit 0
. /etc/os-release
# The archive that this machine itself is set up to ask.
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null |
    tr ' ' '\n' | grep -m 1 '^[a-z+]*://.*debian/*$')
rm -rf "$tree"
mkdir -p "${tree%/*}/archives"
include=$(echo "$*" | tr ' ' ,)
# What one tree has fetched, the next need not fetch.
debootstrap --variant=minbase ${include:+--include="$include"} \
    --cache-dir="$(cd "${tree%/*}/archives" && pwd)" "$VERSION_CODENAME" "$tree" "$mirror"
rm -rf "$tree/var/lib/apt/lists" "$tree/var/cache/apt"
: >"$tree/rfaas-ready"
