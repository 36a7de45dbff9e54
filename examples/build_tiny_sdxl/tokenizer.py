"""A small byte-pair vocabulary in CLIP's own format, trained on the captions and on common words."""

import json
import re
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
COMMON_WORDS = """
the of and a an to in is with on for at by from as it this that are was be or not no one two three four five some many
very small large big tiny old new young light dark bright pale deep photo photograph picture image painting drawing
sketch portrait landscape close up view detailed background foreground left right top bottom middle center corner side
front behind under over near next between around inside outside red orange yellow green cyan blue purple violet pink
brown black white gray grey gold silver man woman boy girl child person people face head eye eyes hair hand cat dog bird
fish horse animal tree flower leaf grass plant forest mountain hill river lake sea ocean beach sky cloud sun moon star
stars night day morning evening sunset sunrise rain snow wind fire water ice earth stone rock wood metal glass paper
house home building city street road car bus train ship boat plane bicycle table chair cup plate bowl food fruit bread
cake coffee tea rocket launch launching galaxy space telescope deep field hubble nebula planet astronaut wearing suit
standing sitting lying running flying looking smiling sleeping holding coin coins text page clock microscope microscopy
cell cells tissue stained brain skin retina grain noise noisy gravel brick texture pattern scan xray tomography
my style art artist watercolor oil pencil colour color colored high quality low resolution realistic
"""


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's and CLIP's table: every byte has a printable character, printable bytes their own, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + k) for k, byte in enumerate(others)}


def train_merges(texts: list[str], vocab_size: int) -> list[tuple[str, str]]:
    """Byte-pair merges: join the most frequent neighbouring pair until `vocab_size` tokens exist.

    References:
        Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, https://arxiv.org/abs/1508.07909
    """
    symbols = bytes_to_unicode()
    counts = Counter(word for text in texts for word in re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()))
    counts.update(COMMON_WORDS.split() * 8)
    words = {}
    for word, count in counts.items():
        split = [symbols[b] for b in word.encode()]
        words[word] = ([*split[:-1], split[-1] + "</w>"], count)
    merges = []
    for _ in range(vocab_size - 2 * len(symbols) - 2):
        pairs: Counter = Counter()
        for split, count in words.values():
            for pair in zip(split, split[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for split, _count in words.values():
            k = 0
            while k < len(split) - 1:
                if (split[k], split[k + 1]) == best:
                    split[k : k + 2] = ["".join(best)]
                k += 1
    return merges


def make_tokenizer(merges: list[tuple[str, str]], pad_token: str) -> CLIPTokenizer:
    """`pad_token` is the end token for SDXL's first text encoder and "!" for its second."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*tokens, BOS, EOS]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=MAX_LENGTH)


def write_vocabulary(tokenizer: CLIPTokenizer, merges: list[tuple[str, str]], folder: Path) -> None:
    """vocab.json and merges.txt: `save_pretrained` writes tokenizer.json alone, other tools look for these."""
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
