#!/usr/bin/env python3
"""On a machine with an NVIDIA card: what the driver asks of the kernel, against the policy, and a request on the card.

    tests/machine/card.py

1. Runs a tiny model on the card, without a jail, under strace, and lists what a worker could not do: each call, with
   all of its arguments, that the filter of a card's spawner (`spawner-gpu` in policy/seccomp) would not let through, and
   each file that was opened and is not in the jail's root, or that was opened to be written and is only read there.
2. Runs tests/it/appliance/card.rs with the machine's driver in the place of the stand-in: the real worker in its jail,
   a whole request after the seal. A call that its filter kills is told by the audit log.

Needs cargo, strace and root. Ends with 1 if a call is missing, or a test fails: whether the driver does without a file,
the second part shows. What it prints is to be looked at, and a rule to be added with its reason (policy/README.md), never
taken over unseen."""

import glob
import json
import os
import platform
import re
import subprocess
import sys
import tempfile

from needed import matches

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
# What the program does that the worker does not, as the policy would say it: its own start, and the seals of an image.
F_ADD_SEALS = 1033
OF_THE_COMMAND = [
    {"syscall": "execve"},
    {"syscall": "fcntl", "args": [{"index": 1, "type": "dword", "op": "eq", "val": F_ADD_SEALS}]},
]
# Calls whose arguments are read with the paths in them.
OPENS = "open,openat"
DYNAMIC = dict(os.environ, RUSTFLAGS="-C target-feature=-crt-static")


def cargo(*words, env=None):
    subprocess.run(["cargo", *words], cwd=ROOT, env=env, check=True)


def policy(name):
    with open(os.path.join(ROOT, f"policy/seccomp/{platform.machine()}.json")) as file:
        return json.load(file)[name]["filter"]


def is_allowed(rules, call, words):
    return any(rule["syscall"] == call and matches({"args": [], **rule}, words) for rule in rules)


class Root:
    """What the root of a card's worker holds, by the lists in the supervisor's source."""

    def __init__(self):
        with open(os.path.join(ROOT, "src/supervisor/cards.rs")) as file:
            source = file.read()
        lists = dict(re.findall(r"^const (\w+): \[&str; \d+\] =\s*\[([^]]*)\];", source, re.MULTILINE))
        texts = re.findall(r'^const (\w+): &str = "(.*)";', source, re.MULTILINE)
        programs = {os.path.basename(text) for name, text in texts if name in ("DRIVER", "LOADER")}
        words = {name: re.findall(r'"([^"]*)"', text) for name, text in lists.items()}
        self.libraries = {*words["LIBC"], *programs}
        self.compilers = tuple(words["COMPILERS"])
        self.files = {*words["DEVICES"], *(f"{dict(texts)['TEXTS_FOLDER']}/{name}" for name in words["TEXTS"])}

    def has(self, path):
        name = os.path.basename(path)
        is_library = name in self.libraries or name.startswith(self.compilers)
        is_device = re.fullmatch(r"/dev/nvidia\d+", path) is not None
        return is_library or is_device or path in self.files or path.startswith("/proc/self/")

    @staticmethod
    def may_write(path):
        return path.startswith(("/dev/", "/proc/self/task/"))


def numbers(text):
    words = [word.strip() for word in text.replace("<unfinished ...>", "").split(",")]
    return tuple(int(word, 0) for word in words if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", word))


def record(command):
    """The calls of a command: name and arguments; and the paths that it opened: path and flags."""
    with tempfile.TemporaryDirectory() as folder:
        strace = ["strace", "-f", "-ff", "-qq", "-X", "raw", "-e", f"raw=!{OPENS},execve", "-e", "signal=none"]
        subprocess.run([*strace, "-o", f"{folder}/t", *command], cwd=ROOT, check=True)
        calls, opened = set(), set()
        for path in glob.glob(f"{folder}/t.*"):
            for line in open(path, errors="replace"):
                if not (found := re.match(r"(\w+)\((.*?)(?:\)\s+= (.*)|$)", line)):
                    continue
                name, text, result = found[1], found[2], found[3] or ""
                if name in OPENS.split(","):
                    of_path = re.search(r'"((?:[^"\\]|\\.)*)", (0x[0-9a-f]+|\d+)', text)
                    if of_path and not result.startswith("-1"):
                        opened.add((of_path[1], int(of_path[2], 0)))
                    calls.add((name, ()))
                else:
                    calls.add((name, numbers(text)))
        return calls, opened


def tell_calls(calls):
    """Prints the calls that the filter would not let through, each once for the arguments that it looks at, and returns
    whether there are any."""
    rules, missing = policy("spawner-gpu") + OF_THE_COMMAND, set()
    for name, words in calls:
        if not is_allowed(rules, name, words):
            looked_at = {it["index"] for rule in rules if rule["syscall"] == name for it in rule.get("args", [])}
            missing.add((name, tuple((at, word) for at, word in enumerate(words) if at in looked_at)))
    for name, words in sorted(missing):
        print(f"not in spawner-gpu: {name}", *(f"argument {at}: {word:#x}" for at, word in words))
    return bool(missing)


def tell_files(opened, of_the_command):
    """Prints the files that were opened and could not be in the jail."""
    root = Root()
    for path, flags in sorted(opened):
        if path in of_the_command:
            continue
        if not root.has(path):
            print(f"not in the jail's root: {path}")
        elif flags & (os.O_ACCMODE | os.O_CREAT) != os.O_RDONLY and not root.may_write(path):
            print(f"not to be written in the jail: {path}")


def main():
    cargo("build", "--features", "cuda", "--bin", "cloister", "--target-dir", "target/cuda", env=DYNAMIC)
    host = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    host = re.search(r"host: (\S+)", host).group(1)
    tiny = "tests/golden/tiny/llama"
    command = [f"target/cuda/{host}/debug/cloister", "model", "golden", f"{tiny}.gguf", f"{tiny}.jsonl"]
    calls, opened = record([*command, "--gpu-layers", "-1"])
    is_missing = tell_calls(calls)
    tell_files(opened, command)
    env = dict(os.environ, CLOISTER_CARD="1")
    test = ["cargo", "test", "--test", "it", "appliance::card::a_", "--", "--nocapture", "--test-threads", "1"]
    failed = subprocess.run(test, cwd=ROOT, env=env).returncode
    sys.exit(1 if is_missing or failed else 0)


if __name__ == "__main__":
    main()
