#!/usr/bin/env python3
"""On a machine with an NVIDIA card: what the driver asks of the kernel, against the policy, and a request on the card.

    tests/machine/card.py

1. Runs a tiny model on the card, without a jail, under strace, and lists each call and each ioctl that the filter of a
   card's spawner (`spawner-gpu` in policy/seccomp) would not let through, with what opened files were not found in the
   jail's root.
2. Runs tests/it/appliance/card.rs with the machine's driver in the place of the stand-in: the real worker in its jail,
   a whole request after the seal. A call that its filter kills is told by the audit log.

Needs cargo, strace and root. Ends with 1 if anything is missing. What it prints is to be looked at, and a rule to be
added with its reason (policy/README.md), never taken over unseen."""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
# What a program does that is not the worker, and what the kernel is asked by strace's own start.
OF_THE_COMMAND = {"execve", "write", "readlink", "vfork", "wait4"}
DYNAMIC = dict(os.environ, RUSTFLAGS="-C target-feature=-crt-static")


def cargo(*words, env=None):
    subprocess.run(["cargo", *words], cwd=ROOT, env=env, check=True)


def policy(name):
    with open(os.path.join(ROOT, f"policy/seccomp/{platform.machine()}.json")) as file:
        return json.load(file)[name]["filter"]


def is_allowed(rules, call, request):
    for rule in rules:
        if rule["syscall"] != call:
            continue
        conditions = [it for it in rule.get("args", []) if call == "ioctl" and it["index"] == 1]
        if all(matches(it, request) for it in conditions):
            return True
    return False


def matches(condition, value):
    operation = condition["op"]
    mask = 0xFFFFFFFF if operation == "eq" else operation["masked_eq"]
    return value & mask == condition["val"] & mask


def record(command):
    """The calls of a command: name, the request of an ioctl, and paths that it opened."""
    with tempfile.NamedTemporaryFile("r") as log:
        subprocess.run(["strace", "-f", "-X", "raw", "-o", log.name, *command], cwd=ROOT, check=True)
        calls, paths = set(), set()
        for line in log:
            found = re.match(r"\d+\s+(\w+)\((.*)", line)
            if not found:
                continue
            name, rest = found.groups()
            request = re.match(r"0x[0-9a-f]+, (0x[0-9a-f]+)|\d+, (0x[0-9a-f]+)", rest)
            number = int(next(filter(None, request.groups())), 16) if request and name == "ioctl" else None
            calls.add((name, number))
            path = re.search(r'"(/(?:dev|proc|sys)[^"]*)"', rest)
            if path and name in ("openat", "open"):
                paths.add(path.group(1) + (" (not there)" if "ENOENT" in rest else ""))
        return calls, paths


def main():
    cargo("build", "--features", "cuda", "--bin", "cloister", "--target-dir", "target/cuda", env=DYNAMIC)
    host = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    host = re.search(r"host: (\S+)", host).group(1)
    tiny = "tests/golden/tiny/llama"
    command = [f"target/cuda/{host}/debug/cloister", "model", "golden", f"{tiny}.gguf", f"{tiny}.jsonl"]
    calls, paths = record([*command, "--gpu-layers", "-1"])
    rules = policy("spawner-gpu")
    missing = [it for it in sorted(calls, key=str) if not is_allowed(rules, *it) and it[0] not in OF_THE_COMMAND]
    for name, request in missing:
        print(f"not in spawner-gpu: {name}" + (f" {request:#x}" if request is not None else ""))
    for path in sorted(paths):
        print(f"opened: {path}")
    env = dict(os.environ, CLOISTER_CARD="1")
    test = ["cargo", "test", "--test", "it", "appliance::card::a_", "--", "--nocapture", "--test-threads", "1"]
    failed = subprocess.run(test, cwd=ROOT, env=env).returncode
    sys.exit(1 if missing or failed else 0)


main()
