# Runs on the host: from here on everything belongs to the machine's control groups, and to a process namespace whose
# end is the end of everything in it. INSIDE is inside.sh.
for group in $groups; do echo $$ > "$group/cgroup.procs"; done
exec unshare --pid --fork --kill-child --mount --mount-proc --propagation private /bin/sh -euc "$INSIDE" sh "$@"
