#!/usr/bin/env bash
# Boots a kernel on an emulated machine with two memory nodes and no disk, runs a script in it as root, and
# ends with the script's exit status. A few seconds, without hardware help.
#
#     boot.sh KERNEL OUT SCRIPT [PATH...]
#
# KERNEL: a bzImage. OUT: a folder; what the script leaves in /out comes back there, with the console, on
# which the script's output stands as it is written: all that is left of a machine that never ends. PATH:
# files and folders of this host that the machine finds at the same paths; programs come with their
# libraries. CLOISTER_KERNEL_ARGUMENTS: more words for the kernel's command line.
# Needs qemu-system-x86, busybox-static, cpio, zstd.
set -euo pipefail
kernel=$(realpath "$1") out=$(realpath "$2") script=$(realpath "$3")
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,dev,etc,out,proc,run,sys,tmp,var/tmp}
cp "$(command -v busybox)" "$root/bin/"
cp "$script" "$root/script"
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"

# add PATH: copies it, its libraries, and says nothing of what is linked whole.
add() {
    [ -e "$root$1" ] && return
    mkdir -p "$root$(dirname "$1")"
    cp -rL "$1" "$root$1"
    # Symbols are most of a program that was built for debugging.
    if [ -x "$1" ] && [ -f "$1" ]; then
        strip "$root$1" 2>/dev/null || true
        local library
        for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*' || true); do add "$library"; done
    fi
}
for path in "$@"; do add "$path"; done

# The first root of a machine cannot be left; Cloister's children leave theirs. So it moves to another.
cat >"$root/init" <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir /new
mount -t tmpfs -o mode=755,size=90% root /new
for path in /*; do case $path in /new | /bin | /init) ;; *) mv "$path" /new/ ;; esac; done
mkdir /new/bin && cp -a /bin/. /new/bin/
exec /new/bin/busybox switch_root /new /bin/sh /start
END
cat >"$root/start" <<'END'
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /dev/shm && mount -t tmpfs shm /dev/shm
chmod 1777 /tmp /var/tmp /dev/shm
chmod 755 /
ip link set lo up
export PATH=/usr/bin:/bin
cd /
{ sh -eux /script 2>&1; echo $? >/out/status; } | tee /out/script.log >/dev/ttyS0
tar -C /out -cf - . | gzip -1 | base64 >/dev/ttyS1
echo o >/proc/sysrq-trigger
sleep 60
END
chmod +x "$root/init"
(cd "$root" && find . -print0 | cpio --null --create --format=newc --owner=0:0 --quiet | zstd -q -1 -T0) >"$work/initrd"

# Without cx16: the emulator of Debian 12 leaves wrong flags behind it, of which newer kernels die.
mib=${CLOISTER_NODE_MIB:-1024}
timeout "${CLOISTER_BOOT_LIMIT_S:-240}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max,cx16=off -smp 2 \
    -m $((2 * mib)) -M q35 \
    -object "memory-backend-ram,id=m0,size=${mib}M" -object "memory-backend-ram,id=m1,size=${mib}M" \
    -numa node,nodeid=0,cpus=0,memdev=m0 -numa node,nodeid=1,cpus=1,memdev=m1 \
    -numa dist,src=0,dst=1,val=21 \
    -nodefaults -no-user-config -display none -no-reboot \
    -serial "file:$out/console.log" -serial "file:$work/out" \
    -kernel "$kernel" -initrd "$work/initrd" \
    -append "console=ttyS0 panic=-1 quiet ${CLOISTER_KERNEL_ARGUMENTS:-}" </dev/null
base64 -di <"$work/out" | tar -C "$out" -xzf -
exit "$(cat "$out/status")"
