#!/usr/bin/env bash
# Unpacks Apicurio's schema registry into .servers/registry-VERSION, once, and prints that folder. Needs Maven.
set -euo pipefail
cd "$(dirname "$0")/.."

version=3.0.9
folder=$PWD/.servers/registry-$version
if [ ! -d "$folder" ]; then
    rm -rf "$folder.part"
    # Maven says everything on stdout, which is for the folder's name, and leaves marks where it stands.
    mkdir -p "$folder.part"
    (cd "$folder.part" && mvn --quiet --batch-mode -Dstyle.color=never dependency:unpack -Dartifact="io.apicurio:apicurio-registry-app:$version:zip:all" -DoutputDirectory="$folder.part" >&2)
    mv "$folder.part" "$folder" # whole or not at all
fi
echo "$folder"
