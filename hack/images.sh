#!/usr/bin/env bash
# The images, built by whichever of buildah, podman and docker is there.
#
#   hack/images.sh build          agenthive-operator:VERSION and agenthive-runtime:VERSION
#   hack/images.sh archive DIR    both as archives that `kind load image-archive` takes, in DIR
#   hack/images.sh sbom DIR       a CycloneDX bill of materials of each, in DIR
#   hack/images.sh names          their names, one a line
#
# IMAGE_PREFIX   before the names, as in registry.example.com/team/ ; none: short names
# ENGINE         buildah, podman or docker; default: the first of them that works
# PYTHON_IMAGE   the base image, instead of the Dockerfiles' own
# SOURCE         address of the source, for the label of that name
# BUILD_FLAGS    more flags of the engine's build, separated by spaces
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

IMAGES=(operator runtime)
VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -n 1)
# Files and labels carry the time of the commit: the same commit gives the same layers.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
read -ra BUILD_FLAGS <<<"${BUILD_FLAGS:-}"

fail() {
    echo "images: $*" >&2
    exit 1
}

works() {
    # docker's and podman's programs are often there without the engine behind them.
    case $1 in
        buildah) command -v buildah >/dev/null ;;
        *) command -v "$1" >/dev/null && "$1" info >/dev/null 2>&1 ;;
    esac
}

engine() {
    local candidate
    if [ -n "${ENGINE:-}" ]; then
        works "$ENGINE" || fail "ENGINE=$ENGINE is not installed, or does not answer \`$ENGINE info\`"
        echo "$ENGINE"
        return
    fi
    for candidate in buildah podman docker; do
        if works "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "none of buildah, podman and docker works here. Install one of them (https://buildah.io," \
        "https://podman.io, https://docs.docker.com/engine/install) and, for docker, start its daemon."
}

# Kubernetes reads a short name as docker.io/library/NAME; buildah and podman would make it localhost/NAME.
name() {
    local prefix=${IMAGE_PREFIX:-}
    if [ -z "$prefix" ] && [ "$ENGINE" != docker ]; then
        prefix=docker.io/library/
    fi
    echo "${prefix}agenthive-$1:$VERSION"
}

# build DOCKERFILE FLAGS…: with the flags that make two builds of one commit the same.
build() {
    local dockerfile=$1
    shift
    case $ENGINE in
        docker)
            docker buildx build --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH" --provenance=false \
                --file "$dockerfile" "$@" "${BUILD_FLAGS[@]}" .
            ;;
        *)
            "$ENGINE" build --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH" --timestamp "$SOURCE_DATE_EPOCH" \
                --file "$dockerfile" "$@" "${BUILD_FLAGS[@]}" .
            ;;
    esac
}

build_images() {
    local image flags
    for image in "${IMAGES[@]}"; do
        flags=(
            --build-arg "VERSION=$VERSION"
            --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)"
            --build-arg "CREATED=$(date --utc --date "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)"
            --build-arg "SOURCE=${SOURCE:-unknown}"
        )
        if [ -n "${PYTHON_IMAGE:-}" ]; then
            flags+=(--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE")
        fi
        if [ "$ENGINE" = docker ]; then
            flags+=(--output "type=docker,name=$(name "$image"),rewrite-timestamp=true")
        else
            flags+=(--tag "$(name "$image")")
        fi
        build "$image/Dockerfile" "${flags[@]}"
        echo "built $(name "$image")"
    done
}

archive_images() {
    local directory=$1 image file
    mkdir -p "$directory"
    for image in "${IMAGES[@]}"; do
        file=$directory/agenthive-$image.tar
        rm -f "$file"
        case $ENGINE in
            buildah) buildah push --quiet "$(name "$image")" "docker-archive:$file:$(name "$image")" ;;
            podman) podman save --quiet --format docker-archive --output "$file" "$(name "$image")" ;;
            docker) docker save --output "$file" "$(name "$image")" ;;
        esac
        echo "$file"
    done
}

boms() {
    local directory=$1 image work
    mkdir -p "$directory"
    for image in "${IMAGES[@]}"; do
        work=$(mktemp -d)
        build hack/sbom.Dockerfile --build-arg "IMAGE=$(name "$image")" --output "type=local,dest=$work"
        mv "$work/sbom.cdx.json" "$directory/agenthive-$image.cdx.json"
        rm -r "$work"
        echo "$directory/agenthive-$image.cdx.json"
    done
}

command=${1:-}
case $command in
    build | archive | sbom | names) ;;
    *) fail "what to do? One of: build, archive DIR, sbom DIR, names" ;;
esac
ENGINE=$(engine)
case $command in
    build) build_images ;;
    archive) archive_images "${2:?the folder for the archives}" ;;
    sbom) boms "${2:?the folder for the bills of materials}" ;;
    names) for image in "${IMAGES[@]}"; do name "$image"; done ;;
esac
