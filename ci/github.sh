#!/usr/bin/env bash
# What action.yml runs: `hoist deploy` with the action's inputs, which come as variables.
set -euo pipefail

fail() {
    echo "::error title=Hoist::$1"
    exit 2
}

hoist=${INPUT_HOIST:-}
if [[ -z $hoist ]]; then
    command -v nix > /dev/null || fail "Nix is not installed; use an action that does, or give the input hoist"
    # With the secrets of the deployment Nix has nothing to do.
    hoist=$(env -u HOIST_CA -u HOIST_CERTIFICATE -u HOIST_KEY -u HOIST_SIGNING_KEY -u GITHUB_TOKEN \
        nix --extra-experimental-features "nix-command flakes" \
        build --no-link --print-out-paths "path:$GITHUB_ACTION_PATH#hoist")/bin/hoist
fi

report=$(mktemp "${RUNNER_TEMP:-/tmp}/hoist-XXXXXX.json")
args=(deploy "--report=$report")
case "${INPUT_FLAKE:-}/${INPUT_SPEC:-}" in
    /) fail "neither the input flake nor spec is given" ;;
    /*) args+=("$INPUT_SPEC") ;;
    */) args+=("--flake=$INPUT_FLAKE") ;;
    *) fail "both the inputs flake and spec are given" ;;
esac
while IFS= read -r line; do
    [[ -z $line ]] || args+=("--agent=$line")
done <<< "${INPUT_AGENTS:-}"
[[ -z ${INPUT_ENVIRONMENT:-} ]] || args+=("--github-deployment=$INPUT_ENVIRONMENT")
while IFS= read -r line; do
    [[ -z $line ]] || args+=("$line")
done <<< "${INPUT_ARGS:-}"

code=0
"$hoist" "${args[@]}" || code=$?
{
    echo "exit-code=$code"
    echo "report=$report"
} >> "$GITHUB_OUTPUT"
exit "$code"
