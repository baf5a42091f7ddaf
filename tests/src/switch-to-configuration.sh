#!/bin/sh
# What a NixOS system's own would do, as far as Hoist can tell from outside. Everything it does is written down
# in /nix/var/hoist-test, which belongs to the test machine and outlives a power cut.
set -eu
action=${1:?}
notes=/nix/var/hoist-test
mkdir -p "$notes/reached" /run
echo "@version@ $action" >> "$notes/activations"
: > "$notes/reached/@version@.$action"

# A test stops the activation here for as long as it likes.
while [ -e "$notes/gates/@version@.$action" ]; do sleep 0.02; done

run_it() {
    echo "activating the configuration..." >&2
    rm -f "$notes/new-link"
    ln -s @out@ "$notes/new-link"
    mv -T "$notes/new-link" /run/current-system
    echo "setting up /etc..." >&2
    # The network is as this system's configuration makes it.
    @network@
    echo "starting the following units: web.service (@version@)" >&2
}

make_default() {
    echo "updating the boot loader..." >&2
    printf %s @out@ > "$notes/boot-default.new"
    mv "$notes/boot-default.new" "$notes/boot-default"
}

case $action in
    test)
        @test@
        run_it
        @after_test@
        ;;
    boot)
        @boot@
        make_default
        ;;
    switch)
        make_default
        run_it
        ;;
    dry-activate) echo "would activate the configuration..." >&2 ;;
    *) echo "unknown action $action" >&2; exit 1 ;;
esac
