#!/bin/sh
# Hoist in any CI: build, push and deploy the flake of this repository, step by step.
#
# The CI's secrets: HOIST_CA, HOIST_CERTIFICATE, HOIST_KEY and HOIST_SIGNING_KEY, each a path or the text itself.
# What is none: HOIST_BROKER, such as mqtts://broker.example.org:8883, and HOIST_CACHE, such as s3://cache?secret-key=FILE.
#
#   ci/deploy.sh [FLAKE] [ARGUMENT OF hoist deploy]…
set -eu

flake=${1:-.}
[ $# -eq 0 ] || shift
hoist=${HOIST:-hoist}
spec=$(mktemp)
trap 'rm -f "$spec"' EXIT

"$hoist" build "$flake" --out "$spec"
[ -z "${HOIST_CACHE:-}" ] || "$hoist" push "$spec"
# A rollout stops when the job is cancelled, and goes on from there when it is run again.
"$hoist" deploy "$spec" "$@"
