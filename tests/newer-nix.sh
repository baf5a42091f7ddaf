#!/usr/bin/env bash
# Runs the scenarios and the activator's tests once more with Nix 2.26, in Debian trixie's root file system, which
# `tests/setup.sh` makes, and with the newer NATS and mosquitto that are there. The programs are those that were built
# here; what concerns none of them is left out.
#
#   newer-nix.sh [FILTER…]               runs them all, or those with FILTER in their name
#   newer-nix.sh enter PROGRAM [ARG…]    runs PROGRAM in that root file system; cargo calls this
#
# It has to run as root, like the scenarios on machines that boot. HOIST_SKIP_SYSTEMD=1 leaves out both, and says so.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
checkout=$(dirname "$here")
root=${HOIST_TEST_ROOT:-/var/cache/hoist-tests}/trixie-$(< "$here/src/nspawn/root.version")

# These do not depend on Nix, or on other brokers; machines that boot have this Nix anyway.
without=(systemd:: connection:: operators:: rollouts::)

fail() {
    echo "error: the tests with Nix 2.26 were not run: $1" >&2
    exit 1
}

# In a namespace of its own: what is mounted, and what is written to the root, ends with it.
enter() {
    local layers=$root.layers target
    mkdir -p "$layers"
    mount -t tmpfs none "$layers"
    mkdir "$layers"/{upper,work,root}
    mount -t overlay -o "lowerdir=$root,upperdir=$layers/upper,workdir=$layers/work" none "$layers/root"
    for folder in /proc /sys /dev /tmp "$checkout"; do
        mkdir -p "$layers/root$folder"
        mount --rbind "$folder" "$layers/root$folder"
    done
    # Cargo's folder may lie outside of the checkout.
    if [[ ! -e $layers/root$1 ]]; then
        target=$(readlink -f "$(dirname "$1")/..")
        mkdir -p "$layers/root$target"
        mount --rbind "$target" "$layers/root$target"
    fi
    cp /etc/hosts "$layers/root/etc/hosts"
    exec chroot "$layers/root" env --chdir="$PWD" --unset=LD_LIBRARY_PATH HOME=/root TMPDIR=/tmp \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

if [[ ${1:-} == enter ]]; then
    shift
    if [[ ${HOIST_NEWER_NIX:-} != inside ]]; then
        HOIST_NEWER_NIX=inside exec unshare --mount --propagation private "$0" enter "$@"
    fi
    enter "$@"
fi

if [[ ${HOIST_SKIP_SYSTEMD:-} == 1 ]]; then
    echo "HOIST_SKIP_SYSTEMD=1: the tests with Nix 2.26 are NOT RUN" >&2
    exit
fi
advice="HOIST_SKIP_SYSTEMD=1 leaves them out"
((EUID == 0)) || fail "only root can change the root file system; run them as root, or $advice"
[[ -d $root ]] || fail "$root is missing; tests/setup.sh makes it, on Debian, or $advice"

echo "with $("$0" enter /usr/bin/nix --version), left out: ${without[*]}" >&2
"$0" enter /usr/bin/nix-instantiate --store dummy:// --eval --strict "$checkout/nix/tests" > /dev/null
exec "${CARGO:-cargo}" --config "target.'cfg(unix)'.runner = ['$here/newer-nix.sh', 'enter']" \
    test --workspace --locked --no-fail-fast --test scenarios --test machines -- "${without[@]/#/--skip=}" "$@"
