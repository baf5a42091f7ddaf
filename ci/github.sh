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

# A job that is cancelled ends hoist, which leaves the machines as they are, says how far it came, and writes its report.
# A shell that waits for a program hears a signal only after that: so it runs beside, where only SIGTERM reaches it.
pid=
stopped=
stop() {
    stopped=yes
    [[ -z $pid ]] || kill -TERM "$pid" 2> /dev/null || true
}
trap stop INT TERM
"$hoist" "${args[@]}" &
pid=$!
[[ -z $stopped ]] || stop
code=0
wait "$pid" || code=$?
# A signal ends the wait and not hoist, whose own exit code the next one gives; 127 is that there is no more to say.
while [[ -n $stopped ]]; do
    stopped=
    again=0
    wait "$pid" || again=$?
    [[ $again -eq 127 ]] || code=$again
done
{
    echo "exit-code=$code"
    echo "report=$report"
} >> "$GITHUB_OUTPUT"
exit "$code"
