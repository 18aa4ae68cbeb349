#!/bin/sh
# Builds helm and kustomize into a folder. Caches: GOMODCACHE, GOCACHE as set by the caller.
set -eu
cd "$(dirname "$0")"
out=${1:?output folder}
GOFLAGS=-mod=readonly GOTOOLCHAIN=local CGO_ENABLED=0 GOWORK=off \
  go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$out/" helm.sh/helm/v3/cmd/helm sigs.k8s.io/kustomize/kustomize/v5
