#!/usr/bin/env bash
# Prints the path of a redis-server: the one on PATH, or else Debian's, unpacked without root into .servers/redis, once.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v redis-server; then
    exit 0
fi
root=$PWD/.servers/redis
if [ ! -x "$root/redis-server" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "there is no redis-server on PATH, and no apt-get to fetch it with: install Redis 7 or newer" >&2
        exit 1
    fi
    if [ "$(id -u)" = 0 ] && ! apt-cache show redis-tools >/dev/null 2>&1; then
        apt-get update -qq >&2
    fi
    rm -rf "$root.part"
    mkdir -p "$root.part/packages"
    # The program is in redis-tools; the others are the libraries that a bare machine lacks.
    (cd "$root.part/packages" && apt-get download -qq redis-server redis-tools libatomic1 libjemalloc2 liblzf1 libsystemd0 libssl3 libgcrypt20 liblz4-1 libzstd1 libcap2 libgpg-error0 >&2)
    for package in "$root.part"/packages/*.deb; do
        dpkg-deb -x "$package" "$root.part"
    done
    cat >"$root.part/redis-server" <<'RUN'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$(echo "$here"/usr/lib/*-linux-gnu "$here"/lib/*-linux-gnu | tr ' ' ':') exec "$here/usr/bin/redis-server" "$@"
RUN
    chmod +x "$root.part/redis-server"
    mv "$root.part" "$root" # whole or not at all
fi
echo "$root/redis-server"
