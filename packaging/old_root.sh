#!/bin/sh
# Runs a command in the directory tree of an older Debian, which it makes if need be:
# what is compiled there runs on that system's glibc and on every newer one.
#
#     packaging/old_root.sh DIR TREE COMMAND...    TREE is seen as /rfaas-tree
#
# Debian 11 has glibc 2.31 and no Python new enough, so CPython is compiled there
# from the source package of the Debian that this machine runs: with its security
# fixes, and 2 minutes on two cores.  Wants root, debootstrap and dpkg-dev.
set -eu
root=$1
tree=$2
shift 2
suite=bullseye
inside='gcc libc6-dev make binutils zlib1g-dev libsqlite3-dev libffi-dev'

fail() {
    printf 'dist: %s\n' "$1" >&2
    [ -z "${2-}" ] || printf 'hint: %s\n' "$2" >&2
    exit 69
}

[ "$(id -u)" = 0 ] || fail 'a chroot takes root'
# Mounts are seen by this process and its children only, and go with them.
[ "${RFAAS_OLD_ROOT-}" ] || RFAAS_OLD_ROOT=yes exec unshare -m "$0" "$root" "$tree" "$@"

# The archive that this machine itself is set up to ask.
mirror() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null |
        tr ' ' '\n' | grep -m 1 '^[a-z+]*://.*debian/*$'
}

if ! [ -e "$root/rfaas-ready" ]; then
    command -v debootstrap >/dev/null || fail 'no debootstrap' 'apt-get install debootstrap'
    command -v dpkg-source >/dev/null || fail 'no dpkg-source' 'apt-get install dpkg-dev'
    rm -rf "$root"
    mkdir -p "$root"
    root=$(cd "$root" && pwd)
    debootstrap --variant=minbase "$suite" "$root" "$(mirror)" >"$root.log" 2>&1 ||
        fail "debootstrap failed; $root.log has the story"
    cp -r /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"
    mount -t proc proc "$root/proc"
    chroot "$root" apt-get update >>"$root.log" 2>&1
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -y --no-install-recommends install \
        $inside >>"$root.log" 2>&1 || fail "apt-get failed in $root"
    # The newest Python 3 whose source this machine's own Debian has.
    sources=$root/build/sources
    mkdir -p "$sources/lists/partial" "$sources/cache/archives/partial"
    . /etc/os-release
    echo "deb-src $(mirror) $VERSION_CODENAME main" >"$sources/list"
    python=$(apt-cache depends python3 | sed -n 's/.*Depends: \(python3\.[0-9]*\)$/\1/p')
    set -- "$@"
    apt_here() {
        apt-get -q -o Dir::Etc::sourcelist="$sources/list" -o Dir::Etc::sourceparts=- \
            -o Dir::State::lists="$sources/lists" -o Dir::Cache="$sources/cache" \
            -o APT::Sandbox::User=root "$@" >>"$root.log" 2>&1
    }
    apt_here update
    (cd "$sources" && apt_here source --download-only "$python" &&
        dpkg-source --no-check -x ./*.dsc python) >>"$root.log" 2>&1 ||
        fail "cannot fetch the source of $python"
    chroot "$root" sh -euc '
        mkdir /build/objects && cd /build/objects
        ../sources/python/configure --prefix=/opt/python --enable-shared --without-doc-strings \
            --disable-test-modules --without-ensurepip \
            CFLAGS="-g0 -O2 -ffile-prefix-map=/build=." LDFLAGS="-Wl,--build-id=none"
        make -j"$(nproc)" && make install
        echo /opt/python/lib >/etc/ld.so.conf.d/python.conf && ldconfig
        rm -rf /build
    ' >>"$root.log" 2>&1 || fail "Python does not compile in $root; $root.log has the story"
    umount "$root/proc"
    # Links such as libdl.so -> /lib/... leave the tree for a linker that has it as --sysroot.
    find "$root/usr/lib/x86_64-linux-gnu" "$root/usr/lib64" -maxdepth 1 -lname '/*' |
        while read -r link; do
            case $link in */lib64/*) up=../.. ;; *) up=../../.. ;; esac
            ln -snf "$up$(readlink "$link")" "$link"
        done
    : >"$root/rfaas-ready"
fi
root=$(cd "$root" && pwd)
mkdir -p "$root/rfaas-tree"
mount --bind "$tree" "$root/rfaas-tree"
mount -t proc proc "$root/proc"
exec chroot "$root" "$@"
