#!/bin/sh
# Copies a folder store, in use or not:   deploy/backup.sh STORE ARCHIVE.tar
#
# The copy holds the objects that were written up to one instant, two seconds ago. That is what a crash at that instant
# would have left, and from that a cloud recovers (docs/operations.md). Objects are made once, so a file that is there does
# not change; keys and the records of apps and devices may, and are taken as they are now: no revocation is left out. It
# needs GNU find and tar, and a clock that is not set back meanwhile.
set -eu
[ $# -eq 2 ] || { echo "usage: $0 STORE ARCHIVE.tar" >&2; exit 2; }
[ -d "$1/secrets" ] || { echo "$0: $1 is no store" >&2; exit 1; }
case $2 in /*) archive=$2 ;; *) archive=$PWD/$2 ;; esac
cut=$(($(date +%s) - 2))
cd "$1"
find . -type f ! -path './.locks/*' ! -name '.new-*' \
    \( ! -newermt "@$cut" -o -path './secrets/*' -o -path './apps/*' \
       -o -path './devices/*' -o -path './enrolled/*' -o -path './revoked/*' \) -print0 |
    tar --null --no-recursion --files-from=- --create --file="$archive.part"
mv "$archive.part" "$archive"
