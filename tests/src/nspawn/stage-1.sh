#!/bin/sh
# The boot loader and the first stage in one: starts the `init` that the loader's default entry names.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
entry=$(sed -n 's/^default //p' /boot/loader/loader.conf) || exit
# Somebody has chosen another entry in the boot menu, for this boot.
if [ -e /boot/loader/chosen ]; then
    entry=$(cat /boot/loader/chosen)
    rm /boot/loader/chosen
fi
init=$(sed -n 's/^options \(.* \)\?init=\([^ ]*\).*/\2/p' "/boot/loader/entries/$entry") || exit
echo "booting $entry: $init"
exec "$init"
