#!/usr/bin/env python3
"""Finds rules of the seccomp policies that nothing needs: runs tests under strace and holds what every process
and thread called, once its filter was on, against the filters that are compiled in.

    tests/machine/needed.py [--calls] [TEST...]

TEST: names of integration tests (default: those of the appliance). --calls also lists what each kind of thread
called. Needs strace and, to see all of it, root. A rule that is reported is not proven to be needless: its
comment says what needs it (the end of a process after a panic, a clock without vDSO); look there, then take it
away and run all tests. Exit code 1 when a call was seen that no rule allows, which cannot be.
"""

import argparse
import collections
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# The arguments of these are read as names; of all others, as numbers.
NAMED = "execve,execveat,prctl,clone3"
# What of them is checked by number, or by value.
NUMBERS = {
    "PR_SET_PDEATHSIG": 1, "PR_GET_PDEATHSIG": 2, "PR_SET_DUMPABLE": 4, "PR_SET_NAME": 15, "PR_CAPBSET_DROP": 24,
    "PR_SET_NO_NEW_PRIVS": 38, "PR_CAP_AMBIENT": 47, "PR_SET_MEMORY_MERGE": 67,
    "SUID_DUMP_DISABLE": 0, "PR_CAP_AMBIENT_CLEAR_ALL": 4,
}
AT_EMPTY_PATH = 0x1000
CLONE_THREAD = 0x10000
# What a thread is called, and the filter that is meant for it; the main thread has no name of its own.
THREADS = {
    "worker": {"": "engine", "kernels": "compute", "text": "text", "link": "link"},
    "loader": {"": "main", "kernels": "compute"},
    "opener": {"": "main", "decrypt": "decrypt"},
    "supervisor": {"": "serving"},
}
LINE = re.compile(r"^(\d+\.\d+) (\w+)\((.*?)(?:\)\s+= (.*)|$)")


def test_program():
    """Builds the tests and the programs, and returns the path of the tests."""
    cargo = ["cargo", "test", "--test", "it", "--no-run", "--message-format=json"]
    built = subprocess.run(cargo, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in built.splitlines():
        message = json.loads(line)
        if message.get("target", {}).get("name") == "it" and message.get("executable"):
            return message["executable"]
    sys.exit("cargo built no integration tests")


def trace(program, tests, folder):
    strace = ["strace", "-f", "-ff", "--decode-pids=pidns", "-qq", "-ttt", "-e", f"raw=!{NAMED}", "-e", "signal=none"]
    command = strace + ["-o", f"{folder}/t", program, "--test-threads=1"] + tests
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode != 0:
        print("a test failed; what was seen until then follows")


class Thread:
    """What one thread did: calls with time, name and arguments."""

    def __init__(self, path):
        self.number = int(path.rsplit(".", 1)[1])
        self.calls, self.program, self.name = [], None, ""
        # Those of it that no new program forgets, and what it made.
        self.all_calls, self.children, self.processes = [], [], []
        for line in open(path, errors="replace"):
            if not (match := LINE.match(line)):
                continue
            time, call, text, result = float(match[1]), match[2], match[3], match[4] or ""
            if call == "execveat" and result == "0" and (role := re.search(r'"cloister-\w+", "(\w+)"', text)):
                self.program, self.calls, self.name = role[1], [], ""
            elif call == "execve" and result == "0":
                is_supervisor = "cloister-supervisor" in text.split(",")[0]
                self.program, self.calls = "supervisor" if is_supervisor else None, []
            elif call == "prctl" and (name := re.match(r'PR_SET_NAME, "([^"-]*)', text)):
                self.name = name[1]
                # A copy of the supervisor, and no program of its own.
                if self.name == "spawner":
                    self.program, self.name = "spawner", ""
            words = arguments(call, text)
            is_thread = "CLONE_THREAD" in text or call == "clone" and bool(words[0] & CLONE_THREAD)
            if call in ("clone", "clone3") and (child := child_number(result)):
                (self.children if is_thread else self.processes).append(child)
            self.calls.append((time, call, words))
            self.all_calls.append((call, tuple(words)))

    def sealed_at(self):
        """When the process put its filter on all threads."""
        times = [time for time, call, words in self.calls if call == "seccomp" and words[:2] == [1, 1]]
        return times[-1] if times else None


def child_number(result):
    if in_ours := re.search(r"/\* (\d+) in strace's PID NS", result):
        return int(in_ours[1])
    number = re.match(r"(0x[0-9a-f]+|\d+)", result)
    return int(number[1], 0) if number else None


def arguments(call, text):
    if call == "prctl":
        return [number(word) for word in text.split(",")]
    if call == "execveat":
        return [0, 0, 0, 0, AT_EMPTY_PATH if "AT_EMPTY_PATH" in text else 0]
    if call in NAMED.split(","):
        return []
    words = [word.strip() for word in text.replace("<unfinished ...>", "").split(",")]
    return [int(word, 0) for word in words if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", word)]


def number(word):
    word = word.split("/*")[0].strip()
    return int(word, 0) if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", word) else NUMBERS.get(word, -1)


def matches(rule, words):
    for condition in rule["args"]:
        width = 0xFFFFFFFF if condition["type"] == "dword" else 0xFFFFFFFFFFFFFFFF
        op = condition["op"]
        mask = op["masked_eq"] if isinstance(op, dict) else width
        word = words[condition["index"]] if condition["index"] < len(words) else 0
        if word & mask != condition["val"] & mask:
            return False
    return True


def seen_by_kind(threads):
    """What each process called once it was sealed, under (process, None), and what each kind of its threads called
    once that had its own filter, under (process, kind)."""
    seen, count = collections.defaultdict(set), collections.Counter()
    for thread in threads.values():
        if not thread.program or (sealed := thread.sealed_at()) is None:
            continue
        count[thread.program] += 1
        family, waiting = [(thread, "")], list(thread.children)
        while waiting:
            if child := threads.get(waiting.pop()):
                family.append((child, child.name))
                waiting += child.children
        for member, name in family:
            kind = THREADS.get(thread.program, {}).get(name)
            own = [time for time, call, words in member.calls if call == "seccomp" and words[:2] == [1, 0]]
            for time, call, words in member.calls:
                if time > sealed:
                    seen[thread.program, None].add((call, tuple(words)))
                if kind and own and time > own[-1]:
                    seen[thread.program, kind].add((call, tuple(words)))
        if thread.program == "spawner":
            # Its children keep its filter, below their own.
            waiting = list(thread.processes)
            while waiting:
                if child := threads.get(waiting.pop()):
                    seen["spawner", None].update(child.all_calls)
                    waiting += child.children + child.processes
    return seen, count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("tests", nargs="*", default=["appliance::"])
    options = parser.parse_args()
    program = test_program()
    cloister = os.path.join(os.path.dirname(os.path.dirname(program)), "cloister")
    told = subprocess.run([cloister, "doctor", "--policy", "--json"], stdout=subprocess.PIPE, text=True).stdout
    filters = json.loads(told)
    with tempfile.TemporaryDirectory() as folder:
        trace(program, options.tests, folder)
        threads = {thread.number: thread for thread in map(Thread, glob.glob(f"{folder}/t.*"))}
    seen, count = seen_by_kind(threads)
    print("processes that were seen:", dict(count))
    if options.calls:
        for (process, kind), calls in sorted(seen.items(), key=str):
            print(f"{process} {kind or 'in all'}:", *sorted({call for call, _ in calls}))
    unknown = False
    for one in filters:
        process, kind = one["process"], one.get("thread")
        called = seen[process, kind]
        if not called:
            continue
        print(f"\n{process} {kind or ''}: not seen to be needed")
        for rule in one["rules"]:
            if not any(call == rule["syscall"] and matches(rule, words) for call, words in called):
                print(f"  {rule['syscall']:<18} {rule['comment']}")
        names = {rule["syscall"] for rule in one["rules"]}
        for call in sorted({call for call, _ in called} - names):
            unknown = True
            print(f"  {call}: seen, and no rule allows it")
    sys.exit(1 if unknown else 0)


if __name__ == "__main__":
    main()
