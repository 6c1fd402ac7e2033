#!/bin/sh
# Sets up what the tree needs to run: what the machine lacks, .venv, the native
# modules, functions/.  Called by make; says nothing where nothing is to be done.
#
#     PYTHON=python3.12 packaging/setup.sh     with another interpreter
#
# Anything may be interrupted: what is finished carries a mark, what is not is
# begun again.  The system's own Python is never installed into.
set -eu
cd -- "${0%/*}/.."
tree=$PWD
venv=.venv
stamp=$venv/rfaas-stamp     # what .venv holds: hash of pyproject.toml, version of Python
pending=$venv/rfaas-pending # there while .venv is being filled
logs=build/setup
tab=$(printf '\t')

# What setup.py makes a binary of, each beside its source; and what they all depend on.
modules='rfaas/native/_[!v]*.pyx rfaas/native/inside.c rfaas/bench/*.c' # and, see list_modules:
verbs_module=rfaas/native/_verbs.pyx
module_sources='setup.py rfaas/native/*.pyx rfaas/native/*.px[di] rfaas/native/*.[ch]'
module_sources="$module_sources rfaas/bench/*.[ch]"

# Interpreters answer in one line: version, suffix of extension modules.
PROBE='import sys, _imp; print("%d.%d.%d" % sys.version_info[:3], _imp.extension_suffixes()[0])'

say() { printf '%s\n' "$*"; }

# fail STATUS MESSAGE [HINT]: statuses are those of sysexits.h(3head)
fail() {
    printf 'rfaas: %s\n' "$2" >&2
    [ -z "${3-}" ] || printf 'hint: %s\n' "$3" >&2
    exit "$1"
}

# ---- what there is -------------------------------------------------------------

# sets version, minor, suffix; empty where PYTHON does not run
ask() {
    version='' suffix=''
    read -r version suffix <<ANSWER || :
$("$1" -I -S -c "$PROBE" 2>/dev/null || :)
ANSWER
    minor=${version%.*}
}

is_new_enough() {
    case $version in 3.[0-9].* | [012].* | '') return 1 ;; esac
}

# 0 where .venv can be used as it is; otherwise `unusable` says why not
look_at_venv() {
    unusable=''
    if ! [ -d $venv ] || [ -z "$(ls -A $venv)" ]; then
        unusable='there is none yet'
    elif [ -e $pending ]; then
        unusable='an earlier set-up was interrupted'
    else
        if [ -n "${PYTHON-}" ]; then
            ask "$PYTHON"
            wanted=$minor
        fi
        ask $venv/bin/python
        if [ -z "$version" ]; then
            unusable='its Python is gone'
        elif ! is_new_enough; then
            unusable="its Python is $version"
        elif [ -n "${PYTHON-}" ] && [ "$minor" != "$wanted" ]; then
            unusable="its Python is $version, asked for is $wanted"
        elif ! [ -d "$venv/lib/python$minor/site-packages/pip" ]; then
            unusable="nothing in it is for Python $minor"
        fi
    fi
    [ -z "$unusable" ]
}

# what the stamp must say
packages_wanted() {
    read -r hash rest <<SUM
$(sha256sum pyproject.toml)
SUM
    wanted_stamp="$hash $version"
}

packages_are_stale() {
    packages_wanted
    found=''
    ! [ -e $stamp ] || read -r found <$stamp || :
    [ "$found" != "$wanted_stamp" ]
}

# The transport over RDMA is built where its headers are, and left out where they are not.
has_verbs_headers() {
    [ -e /usr/include/rdma/rdma_cma.h ] ||
        echo '#include <rdma/rdma_cma.h>' | ${CC:-cc} -xc -fsyntax-only - 2>/dev/null
}

list_modules() {
    case $modules in *$verbs_module*) return ;; esac
    ! has_verbs_headers || modules="$modules $verbs_module"
}

native_is_stale() {
    list_modules
    for module in $modules; do
        binary=${module%.*}$suffix
        [ -e "$binary" ] || return 0
        for source in $module_sources; do
            ! [ "$source" -nt "$binary" ] || return 0
        done
    done
    return 1
}

functions_are_stale() { ! make -q -C functions >/dev/null 2>&1; }

# ---- one long step -------------------------------------------------------------

clock() { date +%s; }

ticker() {
    sleeper=''
    trap 'kill $sleeper 2>/dev/null; exit 0' TERM
    while :; do
        sleep 1 >/dev/null 2>&1 &
        sleeper=$!
        wait "$sleeper"
        seconds=$(($(clock) - begun))
        if [ -t 1 ]; then
            printf '\r%s ... %s s' "$1" "$seconds"
        elif [ $((seconds % 10)) = 0 ]; then
            say "$1 ... $seconds s"
        fi
    done
}

stop_ticker() {
    [ -z "${ticking-}" ] || { kill "$ticking" && wait "$ticking"; } 2>/dev/null || :
    ticking=''
}

interrupted() {
    stop_ticker
    printf '\n' >&2
    fail 130 'interrupted' "\`make build\` begins the unfinished step again"
}
trap interrupted INT TERM HUP

# step NUMBER WHAT COMMAND...: sets `log` and `status`; shows the log where COMMAND fails.
# Never called before || or in a condition: there sh would not stop at an error in COMMAND.
step() {
    title="[$1/4] $2"
    log=$logs/$1.log
    shift 2
    begun=$(clock)
    if [ -t 1 ]; then printf '%s ...' "$title"; else say "$title ..."; fi
    ticker "$title" &
    ticking=$!
    set +e
    (
        set -e
        trap - INT TERM HUP
        "$@"
    ) >"$log" 2>&1 </dev/null
    status=$?
    set -e
    stop_ticker
    [ ! -t 1 ] || printf '\r'
    say "$title ... $(($(clock) - begun)) s"
    if [ $status != 0 ]; then
        say "---- the end of $log"
        tail -n 40 "$log" | cut -c 1-240
        say '----'
    fi >&2
}

# ---- 1: what the machine lacks -------------------------------------------------

# lacks PACKAGE REASON
lacks() {
    packages="$packages $1"
    reasons="$reasons
  $1$tab$2"
}

# sets `base`, the interpreter that .venv is or will be made from
find_base() {
    base=$venv/bin/python
    [ -z "$need_venv" ] || base=${PYTHON:-python3}
    ask "$base"
    [ -n "$version" ] || fail 69 "cannot run \`$base\`, and rFaaS needs Python 3.10 or newer" \
        "install it, or name one: make build PYTHON=/path/to/python3"
    is_new_enough || fail 69 "\`$base\` is Python $version, and rFaaS needs 3.10 or newer" \
        "name a newer one: make build PYTHON=python3.12"
    # Debian's packages are named after the interpreter: python3.11-venv
    base_file=$("$base" -I -S -c 'import os, sys; print(os.path.realpath(sys.executable))')
    base_name=''
    case $base_file in /usr/bin/*) base_name=${base_file##*/} ;; esac
}

compiles_c() { echo '#include <stdio.h>' | ${CC:-cc} -xc -fsyntax-only - 2>/dev/null; }

provide_system() {
    packages='' reasons=''
    if [ "$need_venv" ] && ! "$base" -I -c 'import ensurepip, venv' 2>/dev/null; then
        [ "$base_name" ] || fail 69 "\`$base\` ($version) cannot make .venv: it has no ensurepip" \
            "name another one: make build PYTHON=/usr/bin/python3"
        lacks "$base_name-venv" 'to make .venv, where the Python packages go'
    fi
    if [ "$need_compiler" ] && ! compiles_c; then
        [ -z "${CC-}" ] || fail 69 "the compiler that CC names does not work: $CC"
        lacks gcc 'to compile the native modules and functions/'
        lacks libc6-dev 'the headers of the C library, for the same'
    fi
    if [ "$need_native" ]; then
        include=$("$base" -I -c 'import sysconfig; print(sysconfig.get_path("include"))')
        if ! [ -e "$include/Python.h" ]; then
            [ "$base_name" ] || fail 69 "\`$base\` lacks its headers: no $include/Python.h" \
                "name another one: make build PYTHON=/usr/bin/python3"
            lacks "$base_name-dev" 'the headers of Python, to compile the native modules'
        fi
    fi
    [ "$packages" ] || return 0
    lacking="this machine lacks what rFaaS is built with:$reasons"
    by_hand="as root, run: apt-get install$packages"
    command -v apt-get >/dev/null ||
        fail 69 "$lacking" 'these are the names in Debian; install them, then run `make build` again'
    as_root=''
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail 77 "$lacking" "$by_hand"
        as_root='sudo -n'
    fi
    say "this machine lacks, and apt-get is to install:$reasons"
    [ -z "$as_root" ] || sudo -v || fail 77 'sudo was refused' "$by_hand"
    step 1 'installing system packages' apt_install $packages
    [ $status = 0 ] || fail 69 "apt-get could not install$packages" "$(offline_or "$by_hand")"
    [ -z "$need_compiler" ] || compiles_c || fail 69 '`cc` does not compile though it was installed'
}

# Wanted, not needed: what cannot be installed is done without.
provide_verbs() {
    ! has_verbs_headers && command -v apt-get >/dev/null || return 0
    as_root=''
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 0
        as_root='sudo -n'
    fi
    # And the drivers, which the binary carries along with their libraries.
    step 1 'installing librdmacm-dev, the headers for the transport over RDMA' \
        apt_install librdmacm-dev ibverbs-providers
    [ $status = 0 ] || say 'it cannot be had: building without that transport'
}

apt_install() {
    set -- $as_root env DEBIAN_FRONTEND=noninteractive apt-get -y --no-install-recommends install "$@"
    # The lists may be missing or so old that the files they name are gone.
    "$@" || { $as_root apt-get update && "$@"; }
}

# ---- 2: .venv ------------------------------------------------------------------

fill_venv() {
    if [ "$need_venv" ]; then
        rm -rf $venv
        mkdir $venv
        : >$pending
        "$base" -m venv $venv
    fi
    : >$pending
    rm -f $stamp
    "$venv/bin/python" -I - >build/requirements.txt <<'PYTHON'
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: pip carries the same reader
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")
PYTHON
    PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 \
        $venv/bin/python -I -m pip install --no-input -r build/requirements.txt
    # `import rfaas` in .venv finds the tree, also after the tree has moved.
    printf '../../../..\n' >"$venv/lib/python$minor/site-packages/rfaas-tree.pth"
    printf '%s\n' "$wanted_stamp" >$stamp
    rm -f $pending
}

offline_or() {
    signs='temporary failure|could not resolve|unreachable|no route|NewConnectionError|timed out'
    if grep -qiE "$signs" "$log"; then
        say 'this machine seems to be offline: apt-get and pip do not reach what they are set up to ask'
    else
        say "$1"
    fi
}

# ---- 3 and 4: what is compiled -------------------------------------------------

build_native() {
    : >build/native-begun
    $venv/bin/python -I setup.py -q build_ext --force --parallel 2 \
        --build-lib build/lib --build-temp build/temp
    for module in $modules; do
        binary=${module%.*}$suffix
        # as old as the build's beginning, so that what was edited meanwhile counts as newer
        touch -r build/native-begun "build/lib/$binary"
        # renamed into place: who has the old one loaded keeps it
        cp -p "build/lib/$binary" "$binary.new"
        mv "$binary.new" "$binary"
    done
}

build_functions() { make -C functions; }

# ---- in order ------------------------------------------------------------------

# sets need_*, each empty or yes; 0 where there is something to do
something_to_do() {
    need_venv='' need_packages='' need_native='' need_functions='' need_compiler=''
    if look_at_venv; then
        ! packages_are_stale || need_packages=yes
        ! native_is_stale || need_native=yes
    else
        need_venv=yes need_packages=yes need_native=yes
    fi
    ! functions_are_stale || need_functions=yes
    [ -z "$need_native$need_functions" ] || need_compiler=yes
    [ "$need_packages$need_compiler" ]
}

something_to_do || exit 0
{ [ -w . ] && mkdir -p $logs && [ -w build ]; } ||
    fail 73 "cannot build in $tree: it cannot be written to" 'build in a copy, or as its owner'
if command -v flock >/dev/null; then
    exec 9>build/setup.lock
    flock -n 9 || { say 'waiting for another `make build` in this tree' && flock 9; }
    something_to_do || exit 0
fi
if [ "$need_venv" ]; then
    [ "$unusable" = 'there is none yet' ] || say "making .venv anew: $unusable"
fi
find_base
packages_wanted
provide_system
if [ "$need_packages" ]; then
    step 2 'installing Python packages into .venv' fill_venv
    [ $status = 0 ] || fail 69 'could not set up .venv' \
        "$(offline_or "$tree/$log has the whole story; \`make build\` tries again")"
fi
if [ "$need_native" ]; then
    provide_verbs
    list_modules
    has_verbs_headers || say 'no librdmacm-dev here: building without the transport over RDMA'
    step 3 'compiling the native modules' build_native
    [ $status = 0 ] || fail 70 'the native modules do not compile'
fi
if [ "$need_functions" ]; then
    step 4 'compiling functions/' build_functions
    [ $status = 0 ] || fail 70 'functions/ does not compile'
fi
