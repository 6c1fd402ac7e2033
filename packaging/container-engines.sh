#!/bin/sh
# Installs what the tests of bubblewrap and containers run (tests/containers): bwrap, runc,
# crun, podman, skopeo and a registry.  Says nothing where all is there, and goes on where it
# cannot be had: those tests then say what they miss.
#
#     packaging/container-engines.sh
set -eu
. "${0%/*}/softroce/packages.sh"
needs bwrap bubblewrap
needs runc runc
needs crun crun
needs podman podman
needs skopeo skopeo
needs docker-registry docker-registry
needs newuidmap uidmap
needs fuse-overlayfs fuse-overlayfs
install_needed 'container engines' || true
