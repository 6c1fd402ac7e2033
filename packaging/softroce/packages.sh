# Sourced: names what a script needs of the system, and has apt-get install what is missing.
#
#     needs PROGRAM PACKAGE      a program, by the package that brings it
#     needs_file FILE PACKAGE    a file
#     install_needed WHO         0 where all is there or was installed; WHO is for messages

missing_packages=''

needs() { command -v "$1" >/dev/null 2>&1 || missing_packages="$missing_packages $2"; }

needs_file() { [ -e "$1" ] || missing_packages="$missing_packages $2"; }

install_needed() {
    missing_packages=$(printf '%s\n' $missing_packages | sort -u | tr '\n' ' ')
    missing_packages=${missing_packages% }
    case $missing_packages in *[!\ ]*) ;; *) return 0 ;; esac
    as_root=''
    [ "$(id -u)" = 0 ] || as_root='sudo -n'
    echo "$1: this machine lacks, and apt-get is to install: $missing_packages"
    if ! command -v apt-get >/dev/null || ! { apt_install || { apt_update && apt_install; }; }; then
        echo "$1: cannot install $missing_packages" >&2
        echo "hint: as root, run: apt-get install $missing_packages" >&2
        return 69 # EX_UNAVAILABLE, sysexits.h(3head)
    fi
}

apt_update() { $as_root apt-get -q update >/dev/null; }

apt_install() {
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -y --no-install-recommends install $missing_packages >/dev/null
}
