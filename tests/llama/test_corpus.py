"""Text of any size: the ids of the whole from windows of it, rows from files, and the memory that both take."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.core.errors import DataError
from zoo.data.bad import Skipped
from zoo.data.loader import Loader
from zoo.llama import corpus as corpora
from zoo.llama import long_text, packing
from zoo.llama.corpus import corpus
from zoo.llama.data import Example
from zoo.llama.packing import IGNORED, Packing, pack
from zoo.llama.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ZOO_TEST_DATA") or ROOT.parent / "shared" / "data")


def prose(n: int, seed: int = 0) -> str:
    """Words of letters in several scripts, numbers, long runs of spaces and newlines."""
    rng = np.random.default_rng(seed)
    letters = list("eeetaoinshrdlu") + list("öß日本é🙂")
    words = ["".join(rng.choice(letters, rng.integers(1, 9))) for _ in range(300)] + ["12345", "don't", "..."]
    gaps = [" "] * 12 + ["\n", "\n\n", "    ", "  \n ", "\t", " " * 40]
    return "".join(rng.choice(words) + rng.choice(gaps) for _ in range(n))


def tokenizers_of_all_kinds() -> dict[str, Any]:
    import tokenizers as t
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    text = [prose(3000, 9)]
    found = {}
    gpt = t.Tokenizer(models.BPE())
    gpt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    gpt.decoder = decoders.ByteLevel()
    gpt.train_from_iterator(text, trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "</s>"],
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))  # fmt: skip
    gpt.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    found["byte level, ends marked"] = gpt
    piece = t.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    piece.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    alphabet = [f"<0x{i:02X}>" for i in range(256)]
    special = ["<unk>", "<s>", *alphabet]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False, max_token_length=12)
    piece.train_from_iterator([word for line in text for word in line.split("\n")], trainer)
    piece.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    found["one word, spaces are letters"] = piece
    shipped = ROOT / "weights" / "llama" / "tokenizer.json"
    if shipped.is_file():
        found["shipped"] = t.Tokenizer.from_file(str(shipped))
    return found


@pytest.mark.parametrize("kind", ["byte level, ends marked", "one word, spaces are letters", "shipped"])
def test_windows_give_the_ids_of_the_whole_text(kind, monkeypatch):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed; it is what reads text")
    core = tokenizers_of_all_kinds().get(kind)
    if core is None:
        pytest.skip("the shipped checkpoint is not there")
    monkeypatch.setattr(long_text, "WINDOW", 1500)
    monkeypatch.setattr(long_text, "OVERLAP", 300)
    joints = []
    joint = long_text._joint
    monkeypatch.setattr(long_text, "_joint", lambda *a: joints.append(joint(*a)) or joints[-1])
    for seed in range(4):
        text = prose(6000, seed)
        whole = core.encode(text).ids
        found = list(long_text.encoded(core, io.StringIO(text).read))
        assert np.concatenate(found).tolist() == whole
        assert len(found) > 10 and max(map(len, found)) < 4000
    assert sum(found is not None for found in joints) > 0.9 * len(joints)
    for text in ("", "a", "x" * 9000, " " * 9000, "ab\n" * 5000):
        assert np.concatenate(list(long_text.encoded(core, io.StringIO(text).read))).tolist() == core.encode(text).ids


def test_rows_of_files_are_those_of_memory(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    examples = []
    for n in rng.integers(2, 90, 400):
        learned = (rng.random(n) < 0.7).tolist() if n % 3 == 0 else [True] * int(n)
        examples.append(Example(rng.integers(1, 40_000, n).tolist(), learned))
    whole = pack(examples, 32)
    for vocab in (40_000, 128_000):
        made = Packing(32, vocab, tmp_path)
        for example in examples:
            half = len(example.ids) // 2
            all_of_it = all(example.learned)
            parts = [slice(None, half), slice(half, None)]
            made.add((example.ids[p], None if all_of_it else example.learned[p]) for p in parts)
        rows = made.rows()
        again = pickle.loads(pickle.dumps(rows))
        order = rng.permutation(len(rows))
        for found in (rows, again):
            assert all(np.array_equal(a, b[order]) for a, b in zip(found[order], whole, strict=True))
        assert rows.learned == (whole[1] != IGNORED).sum() and "texts" in rows.place(0)
    monkeypatch.setattr(packing, "WINDOW", 50)  # rows are made up from what is near: others, of the same texts
    inputs, targets, _ = (made.rows("near"))[np.arange(len(made.rows("near")))]
    assert (targets != IGNORED).sum() == rows.learned and len(inputs) < 1.1 * len(whole[0])
    assert sorted(targets[targets != IGNORED].tolist()) == sorted(whole[1][whole[1] != IGNORED].tolist())


def test_what_is_held_out(tmp_path):
    def parts(texts: list[list[int]]) -> tuple[set[int], set[int]]:
        made = Packing(4, 100)
        for ids in texts:
            made.add([(ids, None)])
        return tuple(set(part[np.arange(len(part))][0].ravel().tolist()) - {0} for part in made.parts())  # type: ignore

    train, unseen = parts([[10 + i, 10 + i, 1] for i in range(25)])
    assert unseen == {10, 20, 30} and not train & unseen
    train, unseen = parts([list(range(1, 82))])  # one text: its end
    assert unseen == set(range(73, 81)) and train == set(range(1, 73))
    with pytest.raises(DataError, match="too little text"):
        parts([[1, 2, 3]])


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(corpora, "IN_MEMORY", 0)
    monkeypatch.setattr(corpora, "cache_dir", lambda what: tmp_path / "cache" / what)
    return tmp_path / "cache" / "tokens"


def test_large_data_is_made_once_and_found_again(tiny, tmp_path, kept, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    lines = [json.dumps({"text": f"row {i} " * (i % 7 + 1)}) for i in range(60)]
    (data / "train.jsonl").write_text("\n".join([*lines, "{"]))
    (data / "valid.txt").write_text("unseen " * 50)
    tokenizer = Tokenizer(tiny, 258)
    with pytest.raises(DataError, match=r"train\.jsonl:61: "):
        corpus(data, tokenizer, 258, 32)
    assert list(kept.iterdir()) == []  # nothing is left of what failed
    said: list[str] = []
    skipped = Skipped()
    first = corpus(data, tokenizer, 258, 32, skipped, said.append)
    assert len(skipped) == 1 and len(said) == 1 and len(list(kept.iterdir())) == 1
    monkeypatch.setattr(corpora, "_made", None)  # is not called again
    again, told = Skipped(), corpus(data, tokenizer, 258, 32, skipped := Skipped(), said.append)
    assert skipped.rows and not again.rows and len(said) == 1
    for a, b in zip(first, told, strict=True):
        order = np.arange(len(a))
        assert all(map(np.array_equal, a[order], b[order])) and a.learned == b.learned
    monkeypatch.undo()


def test_only_the_last_ones_are_kept(tiny, tmp_path, kept):
    tokenizer = Tokenizer(tiny, 258)
    for i in range(7):
        (tmp_path / "text.txt").write_text(f"text {i} " * 60)
        corpus(tmp_path / "text.txt", tokenizer, 258, 16)
    assert len(list(kept.iterdir())) == corpora.KEPT
    assert not [path for path in kept.iterdir() if path.name.startswith(".")]


def test_workers_read_rows_from_files(tiny, tmp_path, kept):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200)
    rows, _ = corpus(tmp_path / "text.txt", Tokenizer(tiny, 258), 258, 32)
    plain, working = Loader(rows, 4, seed=2), Loader(rows, 4, seed=2, workers=2)
    for a, b in zip(plain, working, strict=True):
        assert all(map(np.array_equal, a, b))
    working.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_text(tiny, tmp_path):
    """Ten times as much text: the peak grows by less than half of what is more, where
    ids as Python keeps them would take 36 times that."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import re, sys
        from pathlib import Path
        import numpy as np
        from zoo.data.loader import Loader
        from zoo.llama import corpus as corpora, packing
        from zoo.llama.tokenizer import Tokenizer
        corpora.IN_MEMORY, packing.WINDOW = 0, 1 << 10
        corpora.cache_dir = lambda what: Path(sys.argv[2]) / what
        rows, _ = corpora.corpus(Path(sys.argv[1]), Tokenizer(Path(sys.argv[3]), 258), 258, 256)
        for i, batch in enumerate(Loader(rows, 8)):
            pass
        print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], len(rows))
    """)
    )
    peaks = []
    for copies in (3, 30):
        text = tmp_path / f"{copies}.txt"
        text.write_text(prose(20_000, 1) * copies)
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, str(program), str(text), str(tmp_path / "cache"), str(tiny)],
                              capture_output=True, text=True, env=env)  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[0]) * 1024)
    more = (tmp_path / "30.txt").stat().st_size - (tmp_path / "3.txt").stat().st_size
    assert more > 5e6 and peaks[1] - peaks[0] < more / 2, (peaks, more)
