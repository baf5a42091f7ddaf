# Runs in namespaces of the machine's own, as the first process in them: what is mounted here is gone with it.
mount -t overlay overlay -o "lowerdir=$root,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
# What nspawn keeps in the host's /run is for this machine alone.
mount -t tmpfs tmpfs /run
# `||`, so that the shell stays and nspawn is not the first process, which no signal of its own would end.
systemd-nspawn --quiet --directory="$dir/root" --machine="$name" --register=no --keep-unit --settings=no \
    --console=pipe --resolv-conf=off --timezone=off --link-journal=no \
    --bind="$dir/nix:/nix" --bind="$dir/boot:/boot" --bind="$dir/notes:/nix/var/hoist-test" -- "$@" || exit
