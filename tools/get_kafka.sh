#!/usr/bin/env bash
# Fetches Apache Kafka's jars into .servers/kafka/libs, once, and prints that folder. Needs Maven and a Java of 17 or more.
set -euo pipefail
cd "$(dirname "$0")/.."

# A changed pom.xml is not answered with old jars.
libs=$PWD/.servers/kafka/libs
wanted=$(cksum <tools/kafka/pom.xml)
if [ "$(cat "$libs/.pom" 2>/dev/null || true)" != "$wanted" ]; then
    rm -rf "$libs" "$libs.part"
    # Maven says everything on stdout, which is for the folder's name.
    mvn --quiet --batch-mode -Dstyle.color=never --file tools/kafka/pom.xml dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$libs.part" >&2
    echo "$wanted" >"$libs.part/.pom"
    mv "$libs.part" "$libs" # whole or not at all
fi
echo "$libs"
