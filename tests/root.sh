#!/usr/bin/env bash
# Makes the root file system of the machines that the systemd scenarios boot: Debian trixie with systemd 257, Nix 2.26,
# NATS 2.10 and mosquitto 2.0.21, about 350 MB, in a minute, once. `tests/setup.sh` calls this; it has to run as root.
#
#   root.sh FOLDER     makes FOLDER, unless it is there
#
# What comes from the network comes from the Debian mirror that this computer's own apt uses, checked by its keys.
set -euo pipefail

folder=$1
half=$folder.half

fail() {
    echo "error: $1" >&2
    exit 1
}

# The mirror that apt uses for Debian itself, not for its updates.
mirror() {
    apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(COMPONENT) $(IDENTIFIER) $(SITE)' |
        awk '$1 == "Debian" && $2 !~ /-/ && $3 == "main" && $4 == "Packages" { print $5; exit }'
}

mkdir -p "$(dirname "$folder")"
# Two that are started at once do not get into each other's way: the second finds what the first has made.
exec 9> "$folder.lock"
flock 9
[[ -d $folder ]] && exit
rm -rf --one-file-system "$half"

site=$(mirror)
if [[ -z $site ]]; then
    # A computer that has never looked what its mirrors hold.
    apt-get -qq update
    site=$(mirror)
fi
[[ -n $site ]] || fail "apt of this computer knows no Debian mirror (apt-get indextargets)"
eval "$(apt-config shell http_proxy Acquire::http::Proxy)"
if [[ -n ${http_proxy:-} ]]; then
    export http_proxy
fi

echo "making $folder from $site, once" >&2
# debootstrap knows no virtual packages: libdbi-perl is the one that nix-bin's dependencies mean.
if ! debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,nix-bin,libdbi-perl,iproute2,mount,libpam-systemd,mosquitto,mosquitto-clients,nats-server,faketime \
    trixie "$half" "$site" > "$folder.log" 2>&1; then
    tail -n 20 "$folder.log" >&2
    fail "debootstrap failed; all it said is in $folder.log"
fi

# What belongs to one machine, or takes room and time for nothing.
rm -rf "$half"/var/cache/apt/* "$half"/var/lib/apt/lists/* "$half"/usr/share/{doc,man,locale}/*
: > "$half/etc/machine-id"
mkdir -p "$half"/nix "$half"/boot "$half"/var/log/journal "$half"/etc/nix "$half"/etc/systemd/journald.conf.d
touch "$half/etc/NIXOS"

# Units are the system's that runs, as on NixOS.
rm -r "$half/etc/systemd/system"
ln -s /etc/static/systemd/system "$half/etc/systemd/system"

# A folder for each package that a unit's PATH can name, with its programs and no others.
for package in coreutils findutils grep sed util-linux systemd nix-bin mount; do
    bin=$half/packages/$package/bin
    mkdir -p "$bin"
    while read -r program; do
        ln -s "$program" "$bin/"
    done < <(grep -Ehx '(/usr)?/s?bin/[^/]+' "$half/var/lib/dpkg/info/$package.list")
done

# Else each machine does it at its first boot.
chroot "$half" ldconfig
chroot "$half" journalctl --update-catalog
chroot "$half" systemd-sysusers
touch "$half/etc/.updated" "$half/var/.updated"

mv "$half" "$folder"
