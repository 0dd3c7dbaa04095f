#!/usr/bin/env bash
# Builds a target of the Dockerfile where there is neither a container engine nor an image registry.
#
#   deploy/build_in_clean_root.sh TARGET DIRECTORY
#
# The base image is made of Debian's packages (the suite of the Dockerfile's base image, with Debian's own Python), and
# buildah runs the build steps in it, by chroot. DIRECTORY keeps the base and the images for the next time. The last
# line on standard output is the image's root directory, from there to be run. Needs root, buildah and mmdebstrap.
set -euo pipefail

target=${1:?target of the Dockerfile}
mkdir -p "${2:?directory for base and images}"
directory=$(realpath "$2")
source=$(realpath "$(dirname "$0")/..")
# The bundle of certificates that this machine trusts, where it is not Debian's: pip has to reach its index.
certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}

[ "$(id -u)" = 0 ] || { echo "$0: has to be run by root" >&2; exit 2; }
for tool in buildah mmdebstrap; do
    command -v "$tool" >/dev/null || { echo "$0: $tool is missing; apt-get install buildah mmdebstrap" >&2; exit 2; }
done
buildah=(buildah --storage-driver vfs --root "$directory/storage" --runroot "$directory/run")
base=localhost/plaudit-base

if ! "${buildah[@]}" inspect --type image "$base" >/dev/null 2>&1; then
    mmdebstrap --mode=root --variant=minbase --include=ca-certificates,python3-venv trixie "$directory/base.tar" >&2
    container=$("${buildah[@]}" from scratch)
    "${buildah[@]}" add --quiet "$container" "$directory/base.tar" / >&2
    "${buildah[@]}" copy --quiet "$container" "$certificates" /etc/ssl/certs/ca-certificates.crt >&2
    "${buildah[@]}" commit --quiet --rm "$container" "$base" >&2
    rm "$directory/base.tar"
fi
# HEALTHCHECK is of Docker's image format alone.
"${buildah[@]}" bud --isolation chroot --format docker --pull-never --build-arg BASE="$base" \
    --target "$target" --tag "localhost/plaudit:$target" "$source" >&2
"${buildah[@]}" inspect --type image "localhost/plaudit:$target" > "$directory/$target.json"
"${buildah[@]}" rm "plaudit-$target" >&2 2>/dev/null || true  # of the last time
"${buildah[@]}" from --pull-never --name "plaudit-$target" "localhost/plaudit:$target" >&2
"${buildah[@]}" mount "plaudit-$target"
