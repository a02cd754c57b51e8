# Shared by the acceptance scripts: a scratch volume, mounted, and taken away
# again whatever happens. Needs a built peerfs, and root where a script does not say otherwise.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
peerfs=${PEERFS:-$root/target/release/peerfs}
work=$(mktemp -d "${TMPDIR:-/tmp}/peerfs-acceptance-XXXXXX")
image=$work/volume.img
mnt=$work/mnt

need() {
    for tool in "$@"; do
        command -v "$tool" >/dev/null || { echo "$0: $tool is missing; install it" >&2; exit 1; }
    done
}

# Path of a program from the Rust package registry, built when it is not there.
crate_tool() { # name, version
    local tools=$root/target/tools
    [ -x "$tools/bin/$1" ] || cargo install --quiet --locked --root "$tools" "$1@$2" >&2
    echo "$tools/bin/$1"
}

# What else a script has to undo.
undo() { :; }

tidy() {
    local status=$?
    if mountpoint -q "$work/other"; then umount "$work/other" || status=1; fi
    if mountpoint -q "$mnt" 2>/dev/null || [ "$(stat -f -c %T "$mnt" 2>/dev/null)" = fuseblk ]; then
        "$peerfs" umount --force "$mnt" || umount -l "$mnt" || status=1
    fi
    undo || status=1
    rm -rf "$work"
    exit "$status"
}
trap tidy EXIT

make_volume() { # size
    mkdir -p "$mnt"
    "$peerfs" mkfs "image:$image" --size "$1" >/dev/null
}

mount_volume() { # options ...
    "$peerfs" mount "image:$image" "$mnt" "$@"
}

umount_volume() {
    "$peerfs" umount "$mnt"
}

# A command or function, which ends at the first command that fails.
step() {
    printf '%s ... ' "$1"
    shift
    set +e
    # What it was about to undo itself only this shell of its own knows.
    (set -e; trap '[ $? = 0 ] || undo' EXIT; "$@") >"$work/step.log" 2>&1
    local status=$?
    set -e
    [ $status = 0 ] || { echo FAILED; cat "$work/step.log"; exit 1; }
    echo ok
}

# Waits until the server of the mount counts none of these (keys of info --json); they end a moment after their holders.
await_none() { # keys ...
    local key deadline=$((SECONDS + 20))
    for key in "$@"; do
        until "$peerfs" info "$mnt" --json | grep -q "^  \"$key\": 0,"; do
            [ "$SECONDS" -lt "$deadline" ] || { echo "there are still $key"; return 1; }
        done
    done
}
