#!/bin/sh
# What home-manager's `activate` does, in its order: profile, files, the root by which it finds itself, and the units of
# the user's service manager, as sd-switch treats them. Tests read in /nix/var/hoist-test what it did, and can hold it
# there.
set -eu
PATH=/usr/bin:/bin
notes=/nix/var/hoist-test
if [ "$USER" != "$(id -un)" ]; then
    echo "Error: USER is set to $USER, but we expect $(id -un)" >&2
    exit 1
fi
if [ -n "${DRY_RUN:-}" ]; then
    echo "@version@ dry-run" >> "$notes/activations"
    exit 0
fi
echo "@version@ activate" >> "$notes/activations"
: > "$notes/reached/@version@.activate"
# A test stops the activation here for as long as it likes.
while [ -e "$notes/gates/@version@.activate" ]; do sleep 0.02; done

state=${XDG_STATE_HOME:-$HOME/.local/state}
if [ -d "$state/nix/profiles" ]; then
    profiles=$state/nix/profiles
elif [ -d "/nix/var/nix/profiles/per-user/$USER" ]; then
    profiles=/nix/var/nix/profiles/per-user/$USER
else
    echo "Could not find suitable profile directory" >&2
    exit 1
fi
root=$state/home-manager/gcroots/current-home
old=$(readlink -e "$root") || old=

# The way to the broker is as this generation's configuration makes it.
@network@
if [ "$*" != "--driver-version 1" ]; then
    nix-env --profile "$profiles/home-manager" --set @out@
fi
for generation in ${old:+"$old"} @out@; do
    (cd "$generation/home-files/" && find . ! -type d) | while read -r file; do
        rm -f "$HOME/$file"
        if [ -e "@out@/home-files/$file" ]; then
            mkdir -p "$HOME/${file%/*}"
            ln -s "@out@/home-files/$file" "$HOME/$file"
        fi
    done
done
mkdir -p "${root%/*}"
nix-store --realise @out@ --add-root "$root" > /dev/null
(
    :
    @script@
)

export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"
case $(systemctl --user is-system-running 2>&1 || :) in
    running | degraded) ;;
    *)
        echo "User systemd daemon not running. Skipping reload." >&2
        exit
        ;;
esac
units=home-files/.config/systemd/user
stop= start=
for file in ${old:+"$old/$units/"*.service}; do
    unit=${file##*/}
    if [ ! -e "@out@/$units/$unit" ]; then
        stop="$stop $unit"
    elif ! cmp --quiet "$file" "@out@/$units/$unit" && ! grep -qx 'X-RestartIfChanged=false' "@out@/$units/$unit"; then
        stop="$stop $unit"
        start="$start $unit"
    fi
done
for link in "@out@/$units/default.target.wants/"*; do
    unit=${link##*/}
    [ -n "$old" ] && [ -e "$old/$units/default.target.wants/$unit" ] || start="$start $unit"
done
if [ -n "$stop" ]; then
    echo "Stopping units:$stop" >&2
    systemctl --user stop -- $stop
fi
systemctl --user daemon-reload
if [ -n "$start" ]; then
    echo "Starting units:$start" >&2
    systemctl --user start -- $start
fi
