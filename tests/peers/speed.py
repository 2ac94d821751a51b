"""Times Cloister beside llama.cpp: the same file, cores and depths, interleaved, in one run.

    python3 tests/peers/speed.py MODEL.gguf [MODEL.gguf ...] [--threads 2] [--rounds 5]
        [--rows prefill-512,decode-128] [--settings FILE.json] [--isa avx2] [--json]

Needs the PyPI package llama-cpp-python, and `cargo build --release` done (or CLOISTER set to the
program). llama.cpp is tuned for each row: threads, n_ubatch, flash attention, repacking
(use_extra_bufts), one KV buffer or one a sequence, the size of a sliding window's cache. With
--settings the best settings are kept in a file and not looked for again. Both engines stand ready
at the row's depth and take turns, A B A B; a figure is the median of the rounds, a ratio over 1
means that Cloister is faster, and the range is that of the ratios of neighbouring rounds.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time

import llama_cpp as L
import numpy

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# How long the threads of the other engine are given to fall asleep, in seconds.
PAUSE = 0.25

# Name: prompt to read, or depth and sequences to answer.
ROWS = {
    "prefill-512": {"prompt": 512},
    "prefill-4096": {"prompt": 4096},
    "decode-128": {"depth": 128, "batch": 1},
    "decode-4096": {"depth": 4096, "batch": 1},
    "decode-128x16": {"depth": 128, "batch": 16},
}

BASE = {"repack": False, "flash": False, "ubatch": 512, "unified": False, "swa_full": True}


@L.llama_log_callback
def quiet(level, text, user_data):
    pass


class Peer:
    """llama.cpp, ready for a row with one setting."""

    def __init__(self, path, row, setting, generate):
        self.row, self.generate = row, generate
        params = L.llama_model_default_params()
        params.use_extra_bufts = setting["repack"]
        params.n_gpu_layers = 0
        self.model = L.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        self.n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(self.model))
        self.has_window = L.llama_model_n_swa(self.model) > 0
        sequences = row.get("batch", 1)
        length = row.get("prompt") or row["depth"] + generate
        options = L.llama_context_default_params()
        options.n_ctx = -(-length // 256) * 256 * sequences
        options.n_batch = max(row.get("prompt", 0), row.get("depth", 0), setting["ubatch"])
        options.n_ubatch = setting["ubatch"]
        options.n_seq_max = sequences
        options.kv_unified = setting["unified"]
        options.swa_full = setting["swa_full"]
        options.n_threads = options.n_threads_batch = setting["threads"]
        options.flash_attn_type = (
            L.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if setting["flash"]
            else L.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self.context = L.llama_init_from_model(self.model, options)
        if not self.context:
            sys.exit(f"llama.cpp has no context for {row} with {setting}")
        self.memory = L.llama_get_memory(self.context)
        self.batch = L.llama_batch_init(options.n_batch, 0, 1)
        if "prompt" in row:
            self.fill([(0, i, self.token(0, i)) for i in range(min(64, row["prompt"]))], [])
            self.decode()
        else:
            for sequence in range(sequences):
                depth = range(row["depth"])
                self.fill([(sequence, i, self.token(sequence, i)) for i in depth], [])
                self.decode()
            self.answer(2)

    def token(self, sequence, i):
        return (100 + (sequence * 31 + i) % 1000) % self.n_vocab

    def fill(self, tokens, wanted):
        """Takes (sequence, position, token) triples; `wanted` are the indices with logits."""
        self.batch.n_tokens = len(tokens)
        for i, (sequence, position, token) in enumerate(tokens):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = False
        for i in wanted:
            self.batch.logits[i] = True

    def decode(self):
        if L.llama_decode(self.context, self.batch):
            sys.exit("llama.cpp cannot decode")
        L.llama_synchronize(self.context)

    def read(self):
        L.llama_memory_clear(self.memory, True)
        prompt = self.row["prompt"]
        self.fill([(0, i, self.token(0, i)) for i in range(prompt)], [prompt - 1])
        start = time.perf_counter()
        self.decode()
        seconds = time.perf_counter() - start
        logits = L.llama_get_logits_ith(self.context, -1)
        numpy.ctypeslib.as_array(logits, shape=(self.n_vocab,)).argmax()
        return prompt / seconds, time.perf_counter() - start

    def answer(self, steps):
        depth, sequences = self.row["depth"], self.row["batch"]
        start = time.perf_counter()
        for i in range(steps):
            token = self.token(7, i)
            batch = [(sequence, depth + i, token) for sequence in range(sequences)]
            self.fill(batch, range(sequences))
            self.decode()
        seconds = time.perf_counter() - start
        for sequence in range(sequences):
            L.llama_memory_seq_rm(self.memory, sequence, depth, -1)
        return steps * sequences / seconds, None

    def round(self):
        """Returns tokens a second, and the seconds to the first token of a prompt."""
        return self.read() if "prompt" in self.row else self.answer(self.generate)

    def close(self):
        L.llama_batch_free(self.batch)
        L.llama_free(self.context)
        L.llama_model_free(self.model)


class Cloister:
    """`cloister bench --stepwise`, ready for a row."""

    def __init__(self, program, path, row, arguments):
        command = [program, "bench", path, "--stepwise", "--threads", arguments.threads]
        if arguments.isa:
            command += ["--isa", arguments.isa]
        if "prompt" in row:
            command += ["--only", "prefill", "--prompt", row["prompt"]]
        else:
            command += ["--only", "decode", "--depth", row["depth"], "--batch", row["batch"]]
            command += ["--generate", arguments.generate]
        words = [str(word) for word in command]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
        self.line()

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit("cloister bench ended early")
        return json.loads(line)

    def round(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        figures = self.line()
        return figures["tokens_per_s"], figures["first_token_s"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def program():
    """Returns the newest release build."""
    if os.environ.get("CLOISTER"):
        return os.environ["CLOISTER"]
    folders = [f"{ROOT}/target"] + [entry.path for entry in os.scandir(f"{ROOT}/target")]
    found = [f"{folder}/release/cloister" for folder in folders]
    found = [path for path in found if os.path.exists(path)]
    if not found:
        sys.exit("build first: cargo build --release")
    return max(found, key=os.path.getmtime)


def survives(path, name, setting):
    """Returns whether llama.cpp lives through a round, which is tried in a process of its own: built
    by GCC before 13 it dies of its own tile code (AMX), which repacking turns on."""
    words = [sys.executable, __file__, path, "--rows", name, "--try", json.dumps(setting)]
    status = subprocess.run(words, stderr=subprocess.DEVNULL).returncode
    if status < 0:
        print(f"  left out: llama.cpp dies of signal {-status} with {setting}", file=sys.stderr)
    return status == 0


def tune(path, name, arguments):
    """Returns llama.cpp's best setting for a row: every mix of repacking and flash attention, then
    each other knob in turn, the best value kept."""
    row = ROWS[name]
    tried = {}

    def speed(setting):
        key = json.dumps(setting, sort_keys=True)
        if key not in tried:
            peer = Peer(path, row, setting, arguments.generate)
            # The faster of two rounds; a long prompt is read once.
            tries = 1 if row.get("prompt", 0) > 1024 else 2
            tried[key] = max(peer.round()[0] for _ in range(tries))
            if not peer.has_window:
                knobs.pop("swa_full", None)
            peer.close()
            shown = " ".join(f"{name}={value}" for name, value in setting.items())
            print(f"  {tried[key]:8.1f} tokens/s  {shown}", file=sys.stderr)
        return tried[key]

    knobs = {}
    if "prompt" in row:
        knobs["ubatch"] = [128, 256, 1024, 2048]
        knobs["ubatch"] = [size for size in knobs["ubatch"] if size <= max(row["prompt"], 512)]
    if row.get("batch", 1) > 1:
        knobs["unified"] = [True]
    if arguments.threads > 2:
        knobs["threads"] = [arguments.threads - 1, arguments.threads // 2]
    knobs["swa_full"] = [False]
    base = dict(BASE, threads=arguments.threads)
    repacks = (False, True) if survives(path, name, dict(base, repack=True)) else (False,)
    mixes = [(repack, flash) for repack in repacks for flash in (False, True)]
    setting = max((dict(base, repack=a, flash=b) for a, b in mixes), key=speed)
    for knob in list(knobs):
        for value in knobs.get(knob, []):
            other = dict(setting, **{knob: value})
            if speed(other) > speed(setting):
                setting = other
    return setting


def measure(path, name, setting, arguments):
    """Returns the figures of a row, both engines in turn."""
    row = ROWS[name]
    ours = Cloister(program(), path, row, arguments)
    theirs = Peer(path, row, setting, arguments.generate)
    rounds = []
    for _ in range(arguments.rounds):
        time.sleep(PAUSE)
        a = ours.round()
        time.sleep(PAUSE)
        rounds.append((a, theirs.round()))
    ours.close()
    theirs.close()
    figures = [figure("tokens/s", name, [(a[0], b[0]) for a, b in rounds], setting)]
    if "prompt" in row:
        pairs = [(a[1], b[1]) for a, b in rounds]
        figures.append(figure("s", f"first-token-{row['prompt']}", pairs, setting))
    return figures


def figure(unit, name, pairs, setting):
    a, b = (statistics.median(side) for side in zip(*pairs))
    ratios = [x / y if unit == "tokens/s" else y / x for x, y in pairs]
    return {
        "row": name,
        "unit": unit,
        "cloister": a,
        "llama_cpp": b,
        "llama_cpp_setting": setting,
        "ratio": a / b if unit == "tokens/s" else b / a,
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "rounds": pairs,
    }


def table(model, figures, threads):
    """Prints a model's figures as a table."""
    head = [f"{model}, {threads} threads", "", "cloister", "llama.cpp", "ratio", "rounds"]
    print(f"\n| {' | '.join(head)} | llama.cpp's best setting |")
    print("|---|---|---|---|---|---|---|")
    for row in figures:
        digits = 1 if row["unit"] == "tokens/s" else 3
        best = " ".join(
            f"{name}={int(value)}"
            for name, value in row["llama_cpp_setting"].items()
            if value != BASE.get(name) and value != threads
        )
        print(
            f"| {row['row']} | {row['unit']} | {row['cloister']:.{digits}f} "
            f"| {row['llama_cpp']:.{digits}f} | {row['ratio']:.2f} "
            f"| {row['ratio_min']:.2f} to {row['ratio_max']:.2f} | {best or 'no repacking'} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {','.join(ROWS)}")
    parser.add_argument("--generate", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--isa", help="the instruction set of Cloister")
    parser.add_argument("--settings", help="a file that keeps llama.cpp's best settings")
    parser.add_argument("--tune-only", action="store_true", help="fill --settings and end")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--try", dest="setting", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        parser.error(f"--rows: no row is called {unknown[0]}; there are {', '.join(ROWS)}")
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    L.llama_backend_init()
    if arguments.setting:
        Peer(arguments.models[0], ROWS[names[0]], arguments.setting, arguments.generate).round()
        return

    settings = {}
    if arguments.settings and os.path.exists(arguments.settings):
        with open(arguments.settings) as file:
            settings = json.load(file)
    result = {"llama_cpp_python": L.__version__, "models": {}}
    for path in arguments.models:
        model = os.path.basename(path).removesuffix(".gguf")
        figures = []
        for name in names:
            key = f"{model} {name} {arguments.threads}"
            if key not in settings:
                print(f"{model}, {name}: llama.cpp's settings", file=sys.stderr)
                settings[key] = tune(path, name, arguments)
                if arguments.settings:
                    with open(arguments.settings, "w") as file:
                        json.dump(settings, file, indent=1)
            if not arguments.tune_only:
                figures += measure(path, name, settings[key], arguments)
        result["models"][model] = figures
        if figures and not arguments.json:
            table(model, figures, arguments.threads)
    if arguments.json:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
