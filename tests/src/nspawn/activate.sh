#!/bin/sh
# `activate` of a system: /etc, what the configuration changes besides, and last of all /run/current-system.
set -u
PATH=/usr/sbin:/usr/bin:/sbin:/bin
notes=/nix/var/hoist-test
status=0
echo "setting up /etc..." >&2
ln -sfn @out@/etc /etc/static || status=1
if [ -e @out@/etc/hoist/agent.toml ]; then
    mkdir -p /etc/hoist
    ln -sfn /etc/static/hoist/agent.toml /etc/hoist/agent.toml || status=1
fi
# The way to the broker is as this system's configuration makes it.
@network@
(
    :
    @script@
) || status=1
mkdir -p /run/nixos
ln -sfn @out@ /run/current-system || status=1
exit $status
