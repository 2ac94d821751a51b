"""Times Cloister against llama.cpp on the same file, cores and depths, interleaved, in one run.

    python3 tests/peers/speed.py MODEL.gguf [--threads 2] [--rounds 5] [--prompt 512] [--generate 64]

Needs the PyPI package llama-cpp-python, and `cargo build --release` done. llama.cpp is tuned:
every mix of weight repacking (use_extra_bufts) and flash attention is tried once, and the best
one per row is the peer. Rounds run A B A B; the table shows medians and one ratio a row.
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

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@L.llama_log_callback
def quiet(level, text, user_data):
    pass


class Peer:
    """llama.cpp with one setting of repacking and flash attention."""

    def __init__(self, path, threads, repack, flash, context):
        params = L.llama_model_default_params()
        params.use_extra_bufts = repack
        params.n_gpu_layers = 0
        self.model = L.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        options = L.llama_context_default_params()
        options.n_ctx = context
        options.n_batch = options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = (
            L.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else L.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self.context = L.llama_init_from_model(self.model, options)
        self.name = f"repack={'on' if repack else 'off'} flash={'on' if flash else 'off'}"

    def decode(self, tokens):
        array = (L.llama_token * len(tokens))(*tokens)
        if L.llama_decode(self.context, L.llama_batch_get_one(array, len(tokens))):
            sys.exit("llama.cpp cannot decode")
        L.llama_synchronize(self.context)

    def run(self, prompt, generate):
        """Returns prefill and decode speed, in tokens a second."""
        L.llama_memory_clear(L.llama_get_memory(self.context), True)
        tokens = [100 + i % 1000 for i in range(prompt)]
        start = time.perf_counter()
        for at in range(0, prompt, 512):
            self.decode(tokens[at : at + 512])
        prefill = prompt / (time.perf_counter() - start)
        start = time.perf_counter()
        for i in range(generate):
            self.decode([100 + i])
        return prefill, generate / (time.perf_counter() - start)

    def close(self):
        L.llama_free(self.context)
        L.llama_model_free(self.model)


def cloister(path, threads, prompt, generate):
    """Returns prefill and decode speed of `cloister bench`."""
    binary = os.environ.get("CLOISTER", "")
    if not binary:
        for folder in sorted(os.listdir(f"{ROOT}/target")):
            candidate = f"{ROOT}/target/{folder}/release/cloister"
            if os.path.exists(candidate):
                binary = candidate
    if not binary:
        sys.exit("build first: cargo build --release")
    command = [binary, "bench", path, "--threads", threads, "--prompt", prompt]
    command += ["--generate", generate, "--json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    figures = json.loads(done.stdout)
    return figures["prefill_tokens_per_s"], figures["decode_tokens_per_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    arguments = parser.parse_args()
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    L.llama_backend_init()
    sizes = (arguments.prompt, arguments.generate)
    context = sum(sizes) + 16

    tried = {}
    for repack in (False, True):
        for flash in (False, True):
            peer = Peer(arguments.model, arguments.threads, repack, flash, context)
            peer.run(64, 4)
            tried[repack, flash] = (peer.name, peer.run(*sizes))
            peer.close()
    print("llama.cpp, each setting once (prefill, decode tokens/s):")
    for name, (prefill, decode) in tried.values():
        print(f"  {name:<24} {prefill:8.1f} {decode:8.1f}")

    for row, what in enumerate((f"prefill {sizes[0]}", f"decode {sizes[1]} at depth {sizes[0]}")):
        best = max(tried, key=lambda setting: tried[setting][1][row])
        ours, theirs = [], []
        for _ in range(arguments.rounds):
            ours.append(cloister(arguments.model, arguments.threads, *sizes)[row])
            peer = Peer(arguments.model, arguments.threads, *best, context)
            peer.run(64, 4)
            theirs.append(peer.run(*sizes)[row])
            peer.close()
        a, b = statistics.median(ours), statistics.median(theirs)
        print(
            f"{what:<28} cloister {a:8.1f}  llama.cpp {b:8.1f} ({tried[best][0]})"
            f"  ratio {a / b:.2f}  (rounds {min(x / y for x, y in zip(ours, theirs)):.2f}"
            f" to {max(x / y for x, y in zip(ours, theirs)):.2f})"
        )


if __name__ == "__main__":
    main()
