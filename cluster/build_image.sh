#!/usr/bin/env bash
# Build medv-ray:cpu or medv-ray:gpu where Docker is; cluster/README.md, "Image".
#
#   cluster/build_image.sh cpu --torch-cpu FOLDER_OR_URL    # torch's wheel for CPUs: a folder that holds it, or its index
#   cluster/build_image.sh gpu
#
# --name NAME: another name than medv-ray. --base IMAGE@sha256:...: a base image that is pinned already.
# Ends with 0 when the image is built, 2 for a wrong option, 6 where nothing can be built here.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."

refuse() { echo "build_image.sh: $2" >&2; exit "$1"; }

[ $# -gt 0 ] || refuse 2 "say which image: cpu or gpu"
target=$1; shift
name=medv-ray base="" torch=""
while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || refuse 2 "$1 wants a value"
    case $1 in
        --torch-cpu) torch=$2 ;;
        --name) name=$2 ;;
        --base) base=$2 ;;
        *) refuse 2 "there is no option $1" ;;
    esac
    shift 2
done
options=()
case $target in
    cpu)
        case $torch in
            "") refuse 2 "the CPU image wants --torch-cpu: a folder with torch's wheel for CPUs, or the index that has it" ;;
            http://* | https://*) options+=(--build-arg "TORCH_CPU_INDEX=$torch") ;;
            *) torch=$(cd "$here" && cd "$torch" 2> /dev/null && pwd) || refuse 2 "--torch-cpu is no folder"
               options+=(--build-context "wheels=$torch") ;;
        esac ;;
    gpu) [ -z "$torch" ] || refuse 2 "--torch-cpu is for the CPU image" ;;
    *) refuse 2 "there is no image $target: cpu or gpu" ;;
esac

command -v docker > /dev/null || refuse 6 "there is no docker here, so no image was built. Run this where Docker is."
docker info > /dev/null 2>&1 || refuse 6 "docker is here, but no daemon answers, so no image was built."
docker buildx version > /dev/null 2>&1 || refuse 6 "docker has no buildx (BuildKit), so no image was built."

if [ -z "$base" ]; then
    tag=$(sed -n 's/^ARG BASE_IMAGE=//p' cluster/Dockerfile)
    digest=$(docker buildx imagetools inspect "$tag" --format '{{.Manifest.Digest}}') ||
        refuse 6 "the digest of $tag could not be had, so no image was built. Give it: --base $tag@sha256:..."
    base=$tag@$digest
fi
[[ $base =~ @sha256:[0-9a-f]{64}$ ]] || refuse 2 "--base wants a digest: NAME@sha256:..."

version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' medv_ray/__init__.py)
docker buildx build --load --platform linux/amd64 --file cluster/Dockerfile --target "$target" --tag "$name:$target" \
    --build-arg "BASE_IMAGE=$base" \
    --label "org.opencontainers.image.title=medv_ray" \
    --label "org.opencontainers.image.version=$version" \
    --label "org.opencontainers.image.licenses=Apache-2.0" \
    --label "org.opencontainers.image.revision=$(git rev-parse HEAD 2> /dev/null || echo unknown)" \
    --label "org.opencontainers.image.base.name=${base%@*}" \
    --label "org.opencontainers.image.base.digest=${base#*@}" \
    "${options[@]}" .
mkdir -p dist
docker run --rm "$name:$target" cat /opt/medv/sbom.cdx.json > "dist/image-$target.cdx.json"
echo "built $name:$target on $base; what it holds: dist/image-$target.cdx.json"
