#!/usr/bin/env bash
# Boots a real systemd in a container (half a second) with Cloister installed as a package would, runs a
# script in it, and ends with the script's exit status.
#
#     boot.sh PROGRAMS CONFIG OUT SCRIPT [systemd-nspawn's arguments]
#
# PROGRAMS: the folder of the four programs. CONFIG: becomes /etc/cloister. OUT: becomes /out, for what the
# script leaves. SCRIPT: runs as root once the system is up. Needs root, systemd-container, overlayfs. The
# host's /usr is used, read-only; nothing of the host is changed.
set -euo pipefail
programs=$(realpath "$1") config=$(realpath "$2") out=$(realpath "$3") script=$(realpath "$4")
shift 4
here=$(dirname "$(realpath "$0")")
units=$here/../../systemd
name=cloister-$$

# A view of the mounts, and a network, of its own.
if [ "${CLOISTER_BOOT:-}" != inside ]; then
    exec env CLOISTER_BOOT=inside unshare --mount "$0" "$programs" "$config" "$out" "$script" "$@"
fi

work=$(mktemp -d)
groups=(/sys/fs/cgroup/unified /sys/fs/cgroup/systemd)
cleanup() {
    for group in "${groups[@]}"; do
        [ -d "$group/$name" ] || continue
        echo $$ >"$group/cgroup.procs"
        find "$group/$name" -depth -type d -exec rmdir {} \;
    done 2>/dev/null
    umount "$work/root/usr" && rm -rf "$work"
}
trap cleanup EXIT
for group in "${groups[@]}"; do
    # Only where the host itself runs without systemd and has the old hierarchy.
    [ -d "$group" ] || continue
    mkdir -p "$group/$name"
    echo $$ >"$group/$name/cgroup.procs"
done

# The package's files, over the host's.
extra=$work/extra
mkdir -p "$work/root/usr" "$extra"/{bin,lib/cloister,lib/systemd/system,lib/sysusers.d,lib/tmpfiles.d}
cp "$programs"/cloister "$extra/bin/"
cp "$programs"/cloister-{supervisor,gateway,worker} "$extra/lib/cloister/"
cp "$units/cloister-tpm-counter" "$extra/lib/cloister/"
cp "$units"/*.{service,socket,timer} "$extra/lib/systemd/system/"
cp "$units/cloister.sysusers" "$extra/lib/sysusers.d/cloister.conf"
cp "$units/cloister.tmpfiles" "$extra/lib/tmpfiles.d/cloister.conf"
cat >"$extra/lib/systemd/system/script.service" <<'END'
[Unit]
SuccessAction=exit-force
FailureAction=exit-force
Requires=basic.target
After=basic.target
[Service]
Type=oneshot
TimeoutStartSec=200
StandardOutput=append:/out/script.log
StandardError=inherit
ExecStart=/bin/bash -eux /out/script
ExecStopPost=-/bin/sh -c 'journalctl -b --no-pager >/out/journal.log'
END
cp "$script" "$out/script"
mount -t overlay overlay -o "lowerdir=$extra:/usr" "$work/root/usr"

export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_SECCOMP=0
timeout "${CLOISTER_BOOT_LIMIT_S:-240}" systemd-nspawn --quiet --directory="$work/root" --volatile=yes \
    --boot --register=no --keep-unit --console=pipe --machine="$name" --private-network --link-journal=no \
    --capability=all --bind="$config":/etc/cloister --bind="$out":/out "$@" \
    systemd.unit=script.service </dev/null >"$out/console.log" 2>&1
