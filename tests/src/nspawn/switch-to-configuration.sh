#!/bin/sh
# What NixOS's switch-to-configuration does, in its order: lock, boot loader, stop, activate, reload, restart, start,
# look for failed units. Tests read in /nix/var/hoist-test what it did, and can hold it there.
set -u
PATH=/usr/sbin:/usr/bin:/sbin:/bin
action=${1:?}
notes=/nix/var/hoist-test
echo "@version@ $action" >> "$notes/activations"
: > "$notes/reached/@version@.$action"

mkdir -p /run/nixos
exec 9> /run/nixos/switch-to-configuration.lock
flock --nonblock 9 || { echo "Could not acquire lock" >&2; exit 1; }

# A test stops the switch here for as long as it likes.
while [ -e "$notes/gates/@version@.$action" ]; do sleep 0.02; done

# As systemd-boot's builder: an entry for each generation of the profile; the default is the one that is asked for,
# when it is a generation.
install_boot_loader() {
    echo "updating the boot loader..." >&2
    mkdir -p /boot/loader/entries
    default=
    for link in /nix/var/nix/profiles/system-*-link; do
        [ -e "$link" ] || continue
        number=${link#/nix/var/nix/profiles/system-}
        number=${number%-link}
        system=$(readlink -f "$link")
        entry=nixos-generation-$number.conf
        [ "$system" != @out@ ] || default=$entry
        {
            echo "title NixOS"
            echo "version Generation $number"
            echo "linux $(readlink -f "$system/kernel")"
            echo "initrd $(readlink -f "$system/initrd")"
            echo "options init=$system/init loglevel=4"
        } > "/boot/loader/entries/$entry.tmp" || return
        mv "/boot/loader/entries/$entry.tmp" "/boot/loader/entries/$entry" || return
    done
    if [ -n "$default" ]; then
        echo "default $default" > /boot/loader/loader.conf.tmp &&
            mv /boot/loader/loader.conf.tmp /boot/loader/loader.conf || return
    fi
    sync -f /boot
}

case $action in
    boot | switch) install_boot_loader || exit 1 ;;
    test | dry-activate) ;;
    *) echo "unknown action $action" >&2; exit 1 ;;
esac
[ "$action" != boot ] || exit 0

# Code 100: what is PID 1 differs, so nothing can be activated without a reboot.
@inhibit@

old=$(readlink -f /run/current-system)/etc/systemd/system
new=@out@/etc/systemd/system
stop= start= restart= reload=
lists=/run/nixos
for list in start restart reload; do
    if [ -e "$lists/$list-list" ]; then
        # A switch that was killed has left this: its units are ours now.
        eval "$list=\$(cat $lists/$list-list)"
    fi
done

has() { grep -qx "$2" "$1"; }
# Texts for people make no difference.
significant() { sed -e '/^Description=/d' -e '/^Documentation=/d' "$1"; }

units=$(systemctl list-units --full --all --plain --no-legend --state=active,activating,reloading | cut -d' ' -f1)
for unit in $units; do
    [ -e "$old/$unit" ] || continue
    if [ ! -e "$new/$unit" ]; then
        has "$old/$unit" 'X-StopOnRemoval=false' || stop="$stop $unit"
    elif [ "$(significant "$old/$unit")" != "$(significant "$new/$unit")" ]; then
        if has "$new/$unit" 'X-ReloadIfChanged=true'; then
            reload="$reload $unit"
        elif has "$new/$unit" 'X-RestartIfChanged=false'; then
            echo "NOT restarting the changed unit $unit" >&2
        elif has "$new/$unit" 'X-StopIfChanged=false'; then
            restart="$restart $unit"
        else
            stop="$stop $unit"
            start="$start $unit"
        fi
    fi
done

if [ "$action" = dry-activate ]; then
    [ -z "$stop" ] || echo "would stop the following units:$stop" >&2
    echo "would activate the configuration..." >&2
    [ -z "$restart$reload" ] || echo "would restart or reload the following units:$restart$reload" >&2
    [ -z "$start" ] || echo "would start the following units:$start" >&2
    exit 0
fi

for list in start restart reload; do
    eval "units=\$$list"
    [ -z "$units" ] || echo "$units" > "$lists/$list-list"
done
if [ -n "$stop" ]; then
    echo "stopping the following units:$stop" >&2
    systemctl stop -- $stop
fi
echo "activating the configuration..." >&2
code=0
@out@/activate || code=2
systemctl daemon-reload || code=3
if [ -n "$reload" ]; then
    echo "reloading the following units:$reload" >&2
    systemctl reload -- $reload || code=4
fi
if [ -n "$restart" ]; then
    echo "restarting the following units:$restart" >&2
    systemctl restart -- $restart || code=4
fi
[ -z "$start" ] || echo "starting the following units:$start" >&2
systemctl start -- multi-user.target $start || code=4
rm -f "$lists/start-list" "$lists/restart-list" "$lists/reload-list"

# Every unit that has failed counts, whether this switch has to do with it or not; so does one that starts again
# and again.
failed=$(systemctl list-units --full --all --plain --no-legend --state=failed,auto-restart --type=service | cut -d' ' -f1)
if [ -n "$failed" ]; then
    echo "warning: the following units failed: $(echo $failed)" >&2
    code=4
fi
@after@
exit $code
