#!/usr/bin/env bash
# Prints a folder with PostgreSQL's programs: one on PATH, the distribution's, or else Debian's, unpacked without root into .servers/postgres, once.
set -euo pipefail
cd "$(dirname "$0")/.."

if program=$(command -v initdb) && command -v postgres >/dev/null; then
    dirname "$(readlink -f "$program")"
    exit 0
fi
for folder in /usr/lib/postgresql/*/bin; do # Debian leaves them off PATH
    if [ -x "$folder/initdb" ]; then
        echo "$folder"
        exit 0
    fi
done
root=$PWD/.servers/postgres
if [ ! -d "$root" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "there is no initdb on PATH, and no apt-get to fetch it with: install PostgreSQL 13 or newer" >&2
        exit 1
    fi
    if [ "$(id -u)" = 0 ] && ! apt-cache show postgresql >/dev/null 2>&1; then
        apt-get update -qq >&2
    fi
    version=$(apt-cache depends postgresql | sed -n 's/^ *Depends: \(postgresql-[0-9]*\)$/\1/p' | head -1)
    rm -rf "$root.part"
    mkdir -p "$root.part/packages"
    # The server, and those of its libraries that a bare machine lacks: whatever the package depends on whose name begins with lib.
    libraries=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$version" |
        grep -E '^lib' | grep -vE '^(libc6|libc-bin|libpam-modules|libpam-modules-bin|lib.*-perl|libgcc-s1|libdebian-installer4|libelogind0)(:|$)' | sort -u)
    # shellcheck disable=SC2086
    (cd "$root.part/packages" && apt-get download -qq "$version" $libraries >&2)
    for package in "$root.part"/packages/*.deb; do
        dpkg-deb -x "$package" "$root.part"
    done
    rm -r "$root.part/packages"
    mkdir "$root.part/programs"
    for program in initdb postgres; do
        cat >"$root.part/programs/$program" <<RUN
#!/bin/sh
here=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")
export LD_LIBRARY_PATH=\$(echo "\$here"/usr/lib/*-linux-gnu "\$here"/lib/*-linux-gnu | tr ' ' ':')
exec "\$here"/usr/lib/postgresql/*/bin/$program "\$@"
RUN
        chmod +x "$root.part/programs/$program"
    done
    mv "$root.part" "$root" # whole or not at all
fi
echo "$root/programs"
