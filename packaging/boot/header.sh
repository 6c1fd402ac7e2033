#!/bin/sh
# rFaaS @VERSION@: this file is a shell script, and after it a zip (`unzip -l`).
#
# The script picks a Python and runs it isolated: -I, no variables or folders of the
# user's; -S, no .pth files.  RFAAS_PYTHON names another one.
@TABLE@
case $0 in */*) file=$0 ;; *) file=$(command -v -- "$0") ;; esac
[ -f "$file" ] || file=./$0
for python in ${RFAAS_PYTHON:-python3 @NAMES@}; do
    command -v "$python" >/dev/null && exec "$python" -I -S -c '@RUN@' "$file" "$@"
done
echo "rfaas: needs CPython @WANTED@, and there is no ${RFAAS_PYTHON:-python3 here}" >&2
echo 'hint: install python3, name one with RFAAS_PYTHON, or use @BINARY@, which needs none' >&2
exit 69
#|
@BOOT@
#|
@REFUSE@
#|
