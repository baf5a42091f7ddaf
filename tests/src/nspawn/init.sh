#!/bin/sh
# The second stage of a boot: activates the system, remembers that it is the one that was booted, and becomes systemd.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
echo "@version@ init" >> /nix/var/hoist-test/activations
@out@/activate
ln -sfn @out@ /run/booted-system
exec /usr/lib/systemd/systemd
