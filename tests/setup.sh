#!/usr/bin/env bash
# Sees to it that what the demo and the tests need is there: Nix, mosquitto and its clients, NATS, other MQTT
# clients, namespaces.
# On Debian and Ubuntu it installs what is missing, where it may; elsewhere it says exactly what is missing.
# Quick, and changes nothing, when all is there.
#
# Once, as root, it also makes the root file system of machines that boot with systemd: 350 MB from the Debian mirror
# that this computer's apt uses, in a minute. It is kept in $HOIST_TEST_ROOT (/var/cache/hoist-tests). Where it cannot be
# made, this says why, and the scenarios that need it fail. HOIST_SKIP_SYSTEMD=1 leaves both out, for setup and tests.
set -euo pipefail

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
missing=()
packages=()

# need PROGRAM DEBIAN-PACKAGE
need() {
    command -v "$1" > /dev/null && return
    missing+=("$1")
    packages+=("$2")
}

# need_file FILE DEBIAN-PACKAGE
need_file() {
    [[ -e $1 ]] && return
    missing+=("$1")
    packages+=("$2")
}

# Whether this is Debian, from whose mirror Debian can be had.
debian() {
    [[ -r /etc/os-release ]] && (. /etc/os-release && [[ $ID == debian ]])
}

need nix-store nix-bin
need mosquitto mosquitto
need mosquitto_pub mosquitto-clients
need mosquitto_sub mosquitto-clients
need nats-server nats-server
# Clients that others have written, and the reference parser of OpenMetrics.
need_file /usr/lib/python3/dist-packages/paho/mqtt/client.py python3-paho-mqtt
need_file /usr/lib/python3/dist-packages/prometheus_client/openmetrics/parser.py python3-prometheus-client
need node nodejs
need_file /usr/share/nodejs/mqtt/package.json node-mqtt
# The clock of a test machine is set by it.
need faketime faketime
need unshare util-linux
need setpriv util-linux
need mount mount
# ring is compiled with a C compiler.
need cc gcc
# Machines that boot.
if [[ ${HOIST_SKIP_SYSTEMD:-} != 1 ]]; then
    need systemd-nspawn systemd-container
    need strip binutils
    debian && need debootstrap debootstrap
fi

fail() {
    echo "error: $1" >&2
    exit 1
}

command -v cargo > /dev/null || fail "Rust is missing; install it from https://rustup.rs"

if ((${#missing[@]} > 0)); then
    echo "missing: ${missing[*]}" >&2
    mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
    as_root=()
    if ((EUID != 0)); then
        as_root=(sudo -n)
    fi
    if ! command -v apt-get > /dev/null; then
        fail "install these with your system's package manager (on Debian they are the packages ${packages[*]})"
    fi
    if ((EUID != 0)) && ! sudo -n true 2> /dev/null; then
        fail "run this as somebody who may: sudo apt-get install --no-install-recommends ${packages[*]}"
    fi
    echo "installing: ${packages[*]}" >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --yes --no-install-recommends "${packages[@]}" > /dev/null
fi

# A test machine gets a /nix of its own, which would hide a Nix that is installed there.
nix=$(readlink -f "$(command -v nix-store)")
if [[ $nix == /nix/* ]]; then
    fail "the tests need a Nix outside of /nix, such as Debian's package nix-bin; found $nix"
fi
# The mount point of every test machine.
if [[ ! -d /nix ]]; then
    if ((EUID == 0)); then
        mkdir /nix
    else
        sudo -n mkdir /nix 2> /dev/null || fail "the folder /nix is missing: sudo mkdir /nix"
    fi
fi

map_root=()
if ((EUID != 0)); then
    map_root=(--map-root-user)
fi
if ! said=$(unshare --mount "${map_root[@]}" mount --bind /tmp /nix 2>&1); then
    fail "mount namespaces are not allowed here ($said).
       In a container: run it with --cap-add SYS_ADMIN and --security-opt apparmor=unconfined.
       On Ubuntu 24.04 and later: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0
       (or run make as root)"
fi

# The root file system of machines that boot.
if [[ ${HOIST_SKIP_SYSTEMD:-} == 1 ]]; then
    echo "HOIST_SKIP_SYSTEMD=1: no machine is booted by the tests" >&2
    exit
fi
here=$(dirname "$(readlink -f "$0")")
root=${HOIST_TEST_ROOT:-/var/cache/hoist-tests}/trixie-$(< "$here/src/nspawn/root.version")
if [[ ! -d $root ]]; then
    without="Scenarios on machines that boot will fail; HOIST_SKIP_SYSTEMD=1 leaves them out."
    if ((EUID != 0)); then
        echo "warning: only root can make and boot $root. $without" >&2
    elif ! debian; then
        echo "warning: $root can be made on Debian only; bring it from there with tests/root.sh. $without" >&2
    elif ! "$here/root.sh" "$root"; then
        echo "warning: $root could not be made. $without" >&2
    fi
fi
