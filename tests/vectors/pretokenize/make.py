"""Make the vectors of the pre-tokenizers with the regular expressions that they stand for.

Needs the package `regex`. Writes pieces.jsonl and classes.txt beside this file.
"""
import json, os, random, unicodedata
import regex

here = os.path.dirname(os.path.abspath(__file__))
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA = (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
         r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
NAMES = {"gpt-2": GPT2, "smollm": GPT2, "qwen2": LLAMA % "", "llama-bpe": LLAMA % "{1,3}"}


def pieces(name, text):
    parts = regex.findall(r"\p{N}|\P{N}+", text) if name == "smollm" else [text]
    # Python's \s has four control characters (1C to 1F) more than Unicode's White_Space.
    found = [piece for part in parts for piece in regex.findall(NAMES[name], part)]
    assert "".join(found) == text, (name, text, found)
    return found


random.seed(1)
ALPHABETS = [
    "ab AB  '", " \n\r\t a", "a1 23", ".,!?'\"-_ a\n", "'sStTrReEvVmMlLdD ", "éßЖ中ひ٣½Ⅷ² \u0301\u200d",
    "\u00a0\u2003\u3000\u0085\u2028 a.\n", "🙂👩\u200d\ufe0f 1a", "ǅʰªſKİ '", "𝒜𐍈𞤀𝟘 a\n1",
]
texts = ["", " ", "  ", "\n", "a", "'", "''s", " 's", "'S", "I'll we'VE", "a  b", "a \n b", "\r\n\r\n a",
         "12345678", " 123 4567", "!!!\n\n\na", " !\r\n", "...a", "\u3000\u3000x", "a\u0301b", "x   ", "x \t\n \t"]
for alphabet in ALPHABETS:
    for _ in range(25):
        texts.append("".join(random.choice(alphabet) for _ in range(random.randint(1, 14))))
for _ in range(60):
    texts.append("".join(random.choice("".join(ALPHABETS)) for _ in range(random.randint(1, 20))))
with open(os.path.join(here, "pieces.jsonl"), "w") as file:
    for text in texts:
        lens = {name: [len(piece.encode()) for piece in pieces(name, text)] for name in NAMES}
        file.write(json.dumps({"text": text, **lens}, separators=(",", ":")) + "\n")

# Classes of all characters that this Python knows: first code point and class of each run.
runs, last = [], None
for code in range(0x110000):
    kind = unicodedata.category(chr(code))
    kind = "?" if kind in ("Cn", "Cs") else "S" if regex.match(r"\s", chr(code)) else kind[0] if kind[0] in "LN" else "O"
    if 0x1C <= code <= 0x1F:
        kind = "O"
    if kind != last:
        runs.append(f"{code:X} {kind}")
        last = kind
open(os.path.join(here, "classes.txt"), "w").write("\n".join(runs) + "\n")
