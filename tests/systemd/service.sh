# What an operator does, in a booted system: keys from credentials, start, answer, reload, a hung worker,
# stop, the log. Leaves its findings in /out.
say() { echo "script: $*"; }
ask() { cloister chat --url http://127.0.0.1:8443 --api-key-file /etc/cloister/key.txt --max-tokens 8 --json "$@"; }

# The model's key, bound to this host ($KIND: host, or tpm2), stands in no file from here on. $TPM: the
# device, where it is not the machine's own.
seal_key=(systemd-creds encrypt --with-key="$KIND" --name=identity)
[ "$KIND" = tpm2 ] && seal_key+=(--tpm2-device="${TPM:-auto}" --tpm2-pcrs=11)
"${seal_key[@]}" /etc/cloister/identity.age /etc/cloister/identity.cred
rm /etc/cloister/identity.age
mkdir -p /etc/systemd/system/cloister.service.d
cat >/etc/systemd/system/cloister.service.d/key.conf <<'END'
[Service]
LoadCredentialEncrypted=identity:/etc/cloister/identity.cred
END
# A TPM of the tests has no resource manager: what systemd leaves in it is taken out.
flush() { [ -z "${TPM:-}" ] || tpm2_flushcontext --loaded-session; }
# Where there is a TPM, it counts the starts.
if [ "$KIND" = tpm2 ]; then
    sed -i 's/^#! tpm_counter/tpm_counter/' /etc/cloister/cloister.toml
    if [ -n "${TPM:-}" ]; then
        export TPM2TOOLS_TCTI=$TPM
        mkdir -p /etc/systemd/system/cloister-tpm-counter.service.d
        printf '[Service]\nEnvironment=TPM2TOOLS_TCTI=%s\n' "$TPM" \
            >/etc/systemd/system/cloister-tpm-counter.service.d/tpm.conf
    fi
    systemctl add-requires cloister.service cloister-tpm-counter.service
fi
systemctl daemon-reload

systemctl start cloister.socket cloister.service
say started
systemctl show cloister.service -p ActiveState,StatusText,NRestarts,MainPID >/out/started.txt
cloister status --json >/out/status.json
ask Hello >/out/answer.json
systemd-analyze security --no-pager cloister.service >/out/security.txt || true

cat "/proc/$(pgrep -f 'cloister-worker worker')/numa_maps" >/out/numa_maps.txt

# Every process of the service, and what is left to it.
for process in /proc/[0-9]*; do
    case $(readlink "$process/exe") in /usr/lib/cloister/*) ;; *) continue ;; esac
    echo "process $(cat "$process/comm") $(grep -E '^(Uid|CapEff|Seccomp|NoNewPrivs):' "$process/status" | tr -s '\t\n' ' ')"
done >/out/processes.txt

# Who reads the log: root, a member of the auditors' group, and somebody who is none.
read_as() {
    setpriv --reuid=65533 --regid=65533 "$1" -- \
        cloister audit list --newest --limit 1 --json >"/out/$2.json" 2>"/out/$2.txt" || true
}
read_as --groups="$(getent group cloister-audit | cut -d: -f3)" auditor
read_as --clear-groups stranger

# Records are forwarded by a unit of its own user.
systemctl start cloister-forward.service
for _ in $(seq 100); do
    journalctl -t cloister-audit -o json >/out/forwarded.json
    grep -q '"CLOISTER_EVENT":"end"' /out/forwarded.json && break
    sleep 0.2
done
systemctl show cloister-forward.service -p ActiveState,NRestarts,ExecMainStatus >/out/forward.txt
say forwarded

# A timer has the checkpoint witnessed, here not once an hour but at once.
if [ -x /etc/cloister/witness ]; then
    /etc/cloister/witness /etc/cloister/audit.vkey >/run/witness.txt &
    witness=$!
    for _ in $(seq 100); do [ "$(wc -l </run/witness.txt)" = 2 ] && break; sleep 0.1; done
    sed -n 2p /run/witness.txt >/etc/cloister/witness.vkey
    echo "CLOISTER_WITNESS=$(sed -n 1p /run/witness.txt)" >/etc/cloister/witness.conf
    mkdir -p /etc/systemd/system/cloister-witness.timer.d
    printf '[Timer]\nOnActiveSec=1\nRandomizedDelaySec=0\nAccuracySec=1ms\n' \
        >/etc/systemd/system/cloister-witness.timer.d/soon.conf
    # There is no network but the loopback, and nobody says when it is there.
    systemctl mask --runtime systemd-networkd-wait-online.service
    systemctl daemon-reload
    systemctl start cloister-witness.timer
    for _ in $(seq 100); do [ -s /var/lib/cloister-witness/witnessed.txt ] && break; sleep 0.2; done
    systemctl show cloister-witness.timer -p ActiveState,LastTriggerUSec >/out/timer.txt
    systemctl show cloister-witness.service -p Result,ExecMainStatus >/out/witness.txt
    cloister audit verify --checkpoint /var/lib/cloister-witness/witnessed.txt \
        --witness-key /etc/cloister/witness.vkey --json >/out/witnessed.json
    systemctl stop cloister-witness.timer
    kill "$witness"
    say witnessed
fi

systemctl reload cloister.service
say reloaded
ask Hello >/out/after-reload.json

# A worker that hangs is started again, without the service being so.
kill -STOP "$(pgrep -f 'cloister-worker worker')"
for _ in $(seq 100); do
    sleep 0.2
    grep -q hangs <(cloister audit list --event child_died --json) && break
done
for _ in $(seq 100); do ask Hello >/out/after-hang.json && break; sleep 0.2; done
systemctl show cloister.service -p ActiveState,StatusText,NRestarts >/out/after-hang.txt

systemctl stop cloister.service
cloister audit list --event log_read --json >/out/readings.json
cloister audit verify --json >/out/verdict.json
systemctl show cloister.service -p Result >/out/stopped.txt
[ "$KIND" = tpm2 ] || exit 0
# Twice more, and the counter is that of the last start.
for _ in 1 2; do
    flush
    systemctl start cloister.service
    systemctl stop cloister.service
done
flush
count=$(/usr/lib/cloister/cloister-tpm-counter read)
cloister audit verify --json --tpm-counter "$count" >/out/counted.json
cloister audit verify --json --tpm-counter $((count + 1)) >/out/rolled-back.json && exit 1

# Another boot state than the key was sealed for.
if [ -n "${TPM:-}" ]; then
    touch /out/tamper
    while [ ! -e /out/tampered ]; do sleep 0.05; done
else
    tpm2_pcrextend 11:sha256=2222222222222222222222222222222222222222222222222222222222222222
fi
systemctl start cloister.service && exit 1
systemctl show cloister.service -p Result,ExecMainStatus >/out/tampered.txt
