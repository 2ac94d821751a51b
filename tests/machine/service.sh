#!/usr/bin/env bash
# Boots a whole Debian with Cloister installed as a package would, on an emulated machine with a TPM and two
# memory nodes, runs a script in it as root, and ends with the script's exit status. A minute or two.
#
#     service.sh KERNEL PROGRAMS CONFIG OUT SCRIPT
#
# KERNEL: a bzImage (see kernels.sh). PROGRAMS: the folder of the four programs. CONFIG: becomes /etc/cloister.
# OUT: a folder; what the script leaves in /out comes back there, with the console. The system itself is made
# once, in target/machine, from the mirror that apt uses here.
# Needs root, qemu-system-x86, swtpm, mmdebstrap, cpio, zstd.
set -euo pipefail
kernel=$(realpath "$1") programs=$(realpath "$2") config=$(realpath "$3") out=$(realpath "$4") script=$(realpath "$5")
here=$(dirname "$(realpath "$0")")
units=$here/../../systemd
base=$here/../../target/machine
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -s "$base/root.cpio.zst" ]; then
    mkdir -p "$base"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -E '/debian/?$' | head -n 1)
    # What runs a service and talks to a TPM; no maintainer scripts, no manuals.
    mmdebstrap --quiet --mode=root --variant=extract --include=systemd,systemd-sysv,dash,bash,coreutils,util-linux,mount,grep,sed,gawk,findutils,procps,tar,gzip,libc-bin,base-files,base-passwd,tpm2-tools,libtss2-tcti-device0,libtss2-esys-3.0.2-0,libtss2-mu0,libtss2-rc0 \
        --aptopt='Acquire::Languages "none"' --aptopt='Apt::Install-Recommends "false"' \
        bookworm "$work/base" "deb $mirror bookworm main"
    (
        cd "$work/base"
        cp usr/share/base-passwd/passwd.master etc/passwd
        cp usr/share/base-passwd/group.master etc/group
        rm -rf usr/share/{doc,man,locale,info,zoneinfo,bash-completion} usr/lib/udev/hwdb.d var/cache/* var/lib/apt
        ln -sf dash bin/sh
        echo 3d1219c7c4c5404aaa1f6d2a48adfda4 >etc/machine-id
        : >etc/fstab
        for unit in getty.target systemd-udevd.service systemd-udev-trigger.service systemd-hwdb-update.service \
            systemd-firstboot.service systemd-machine-id-commit.service systemd-logind.service \
            systemd-update-utmp.service; do
            ln -sf /dev/null "etc/systemd/system/$unit"
        done
        ldconfig -r .
        find . -print0 | cpio --null --create --format=newc --owner=0:0 --quiet | zstd -q -3 -T0 >"$base/root.cpio.zst.new"
    )
    mv "$base/root.cpio.zst.new" "$base/root.cpio.zst"
fi

# The package's files, over those.
root=$work/root
mkdir -p "$root"/{bin,out,etc/systemd/system,usr/bin,usr/lib/cloister,usr/lib/systemd/system,usr/lib/sysusers.d,usr/lib/tmpfiles.d}
rmdir "$root/bin"
cp "$programs/cloister" "$root/usr/bin/"
cp "$programs"/cloister-{supervisor,gateway,worker} "$root/usr/lib/cloister/"
strip "$root/usr/bin/cloister" "$root"/usr/lib/cloister/*
cp "$units/cloister-tpm-counter" "$root/usr/lib/cloister/"
cp "$units"/*.{service,socket,timer} "$root/usr/lib/systemd/system/"
cp "$units/cloister.sysusers" "$root/usr/lib/sysusers.d/cloister.conf"
cp "$units/cloister.tmpfiles" "$root/usr/lib/tmpfiles.d/cloister.conf"
cp -r "$config" "$root/etc/cloister"
cp "$script" "$root/script"
cat >"$root/etc/systemd/system/script.service" <<'END'
[Unit]
SuccessAction=poweroff-force
FailureAction=poweroff-force
Requires=basic.target
After=basic.target
[Service]
Type=oneshot
TimeoutStartSec=600
StandardOutput=append:/out/script.log
StandardError=inherit
ExecStart=/bin/bash -eux /script
ExecStopPost=-/bin/bash -c 'echo $EXIT_STATUS >/out/status; journalctl -b --no-pager >/out/journal.log; tar -C /out -czf - . | base64 >/dev/ttyS1'
END
# The first root of a machine cannot be left; services and Cloister's children leave theirs.
cat >"$root/init" <<'END'
#!/bin/sh
mkdir /new
mount -t tmpfs -o mode=755,size=90% root /new
for path in /*; do case $path in /new | /usr | /bin | /sbin | /lib | /lib64 | /init) ;; *) mv "$path" /new/ ;; esac; done
cp -a /usr /bin /sbin /lib /lib64 /new/
exec switch_root /new /lib/systemd/systemd
END
chmod +x "$root/init"
(cd "$root" && find . -print0 | cpio --null --create --format=newc --owner=0:0 --quiet | zstd -q -1 -T0) >"$work/over"
cat "$base/root.cpio.zst" "$work/over" >"$work/initrd"

swtpm socket --tpm2 --tpmstate dir="$work" --ctrl type=unixio,path="$work/tpm" --daemon --terminate
timeout "${CLOISTER_BOOT_LIMIT_S:-600}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max,cx16=off -smp 2 \
    -m 4096 -M q35 -object memory-backend-ram,id=m0,size=2048M -object memory-backend-ram,id=m1,size=2048M \
    -numa node,nodeid=0,cpus=0,memdev=m0 -numa node,nodeid=1,cpus=1,memdev=m1 -numa dist,src=0,dst=1,val=21 \
    -chardev socket,id=tpm,path="$work/tpm" -tpmdev emulator,id=tpm0,chardev=tpm -device tpm-tis,tpmdev=tpm0 \
    -nodefaults -no-user-config -display none -no-reboot \
    -serial "file:$out/console.log" -serial "file:$work/out" \
    -kernel "$kernel" -initrd "$work/initrd" \
    -append "console=ttyS0 panic=-1 systemd.unit=script.service systemd.log_color=0 quiet" </dev/null
base64 -di <"$work/out" | tar -C "$out" -xzf -
exit "$(cat "$out/status")"
