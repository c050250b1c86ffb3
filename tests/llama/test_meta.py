"""Checkpoints in Meta's own layout: params.json, consolidated.*.pth, tokenizer.model."""

from __future__ import annotations

import base64
import itertools
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.cli.main import main
from zoo.core.errors import WeightsError
from zoo.hub import load, save
from zoo.hub.formats import read
from zoo.llama import meta, vocabulary
from zoo.llama.generate import generate
from zoo.llama.weights import META

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
SHAPE = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
         "initializer_range": 0.3}  # fmt: skip
PARAMS = {"dim": 48, "n_layers": 2, "n_heads": 8, "n_kv_heads": 4, "multiple_of": 64, "norm_eps": 1e-5,
          "vocab_size": -1}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


def neighbours(weight, heads: int):
    """Half-split rows of each head to neighbouring pairs, one at a time: the inverse of `permute` in transformers'
    convert_llama_weights_to_hf.py, which takes row 2j + s of a head to row s D/2 + j."""
    dim = len(weight) // heads
    rows = [h * dim + s * dim // 2 + j for h in range(heads) for j in range(dim // 2) for s in range(2)]
    return weight[rows]


def metas(theirs, config) -> dict:
    """The tensors of a transformers model under Meta's names."""
    state, out = theirs.state_dict(), {}
    renamed = {"self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
               "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
               "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for i in range(config.num_hidden_layers):
        ours, layer = f"layers.{i}.", f"model.layers.{i}."
        q, k = state[layer + "self_attn.q_proj.weight"], state[layer + "self_attn.k_proj.weight"]
        out[ours + "attention.wq.weight"] = neighbours(q, config.num_attention_heads)
        out[ours + "attention.wk.weight"] = neighbours(k, config.num_key_value_heads)
        out |= {f"{ours}{new}.weight": state[f"{layer}{old}.weight"] for old, new in renamed.items()}
    names = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    return out | {f"{new}.weight": state[f"{old}.weight"] for new, old in names.items()}


def split(tensors: dict, shards: int, embedding_axis: int) -> list[dict]:
    """As fairscale's layers hold them, one dictionary to a processor."""
    axes = {
        "wq": 0,
        "wk": 0,
        "wv": 0,
        "w1": 0,
        "w3": 0,
        "output": 0,
        "wo": 1,
        "w2": 1,
        "tok_embeddings": embedding_axis,
    }
    parts: list[dict] = [{} for _ in range(shards)]
    for name, tensor in tensors.items():
        axis = axes.get(name.split(".")[-2])
        pieces = [tensor] * shards if axis is None else tensor.chunk(shards, dim=axis)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    return parts


def written(directory: Path, shards: int = 1, axis: int = 1, params: dict | None = None, dtype=None, **changed):
    """(transformers' model, torch): its weights lie in `directory` as Meta would publish them."""
    torch = pytest.importorskip("torch", reason="torch is not installed; it writes the files")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    torch.manual_seed(3)
    config = transformers.LlamaConfig(**{**SHAPE, **changed})
    theirs = transformers.LlamaForCausalLM(config).eval()
    if dtype is not None:
        theirs = theirs.to(getattr(torch, dtype)).float()  # values that the narrow dtype holds
    tensors = metas(theirs, config)
    tensors["rope.freqs"] = torch.ones(config.head_dim // 2)
    directory.mkdir(exist_ok=True)
    for i, part in enumerate(split(tensors, shards, axis)):
        kept = part if dtype is None else {name: t.to(getattr(torch, dtype)) for name, t in part.items()}
        torch.save(kept, directory / f"consolidated.{i:02d}.pth")
    (directory / "params.json").write_text(json.dumps(PARAMS if params is None else params))
    return theirs, torch


def logits(model, ids: np.ndarray) -> np.ndarray:
    return model(zoo.tensor(ids.astype(np.int32), device=model.device)).numpy()


IDS = np.random.default_rng(0).integers(0, 96, (2, 30))


@pytest.mark.parametrize(
    ("shards", "axis", "params", "changed"),
    [
        (1, 1, {}, {}),
        (2, 1, {}, {}),
        (4, 0, {}, {}),  # Llama 3 splits the embedding by rows
        (1, 0, {"rope_theta": 500000.0, "use_scaled_rope": True},
         {"rope_theta": 500000.0, "rope_scaling": LLAMA3, "max_position_embeddings": 131072}),
        (2, 1, {"ffn_dim_multiplier": 1.3, "multiple_of": 32, "n_kv_heads": None},
         {"intermediate_size": 192, "num_key_value_heads": 8}),
    ],
)  # fmt: skip
def test_logits_are_those_of_transformers(tmp_path, shards, axis, params, changed):
    theirs, torch = written(tmp_path, shards, axis, {**PARAMS, **params}, **changed)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    model = load(tmp_path, device="cpu")
    assert np.abs(logits(model, IDS) - expected).max() < 1e-4 * np.abs(expected).max()


def test_bfloat16_stays_and_the_saved_one_is_read_by_transformers(tmp_path):
    theirs, torch = written(tmp_path / "meta", 2, 1, dtype="bfloat16")
    model = load(tmp_path / "meta", device="cpu")
    assert {spec.dtype.name for spec in model.spec().values()} == {"bfloat16"}
    save(model, tmp_path / "ours", port="llama")
    import transformers

    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    mine, state = theirs.state_dict(), again.state_dict()
    assert set(mine) == set(state) and all(torch.equal(mine[name], state[name]) for name in mine)
    assert np.array_equal(logits(load(tmp_path / "ours", device="cpu"), IDS), logits(model, IDS))


def test_there_and_back_is_the_same(tmp_path):
    written(tmp_path, 2)
    model = load(tmp_path, device="numpy")
    ours = {name: tensor.numpy() for name, tensor in model.state().items()}
    back = dict(META.export(ours, model.config).translate(ours))
    with read(tmp_path / "consolidated.00.pth") as published:
        assert set(published) - set(back) == {"rope.freqs"}
        assert all(np.array_equal(published[name], array) for name, array in back.items())


def test_the_shapes_of_the_releases():
    """config.json of transformers' repositories, from params.json of Meta's."""
    llama1 = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-6}
    llama2 = {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8,
              "n_layers": 80, "norm_eps": 1e-5}  # fmt: skip
    llama3 = {"dim": 4096, "multiple_of": 1024, "ffn_dim_multiplier": 1.3, "n_heads": 32, "n_kv_heads": 8,
              "n_layers": 32, "norm_eps": 1e-5, "rope_theta": 500000.0}  # fmt: skip
    small = {"dim": 2048, "multiple_of": 256, "ffn_dim_multiplier": 1.5, "n_layers": 16, "use_scaled_rope": True}
    releases = [
        (llama1, 32000, (11008, 32, 2048, 10000.0)),
        (llama2, 32000, (28672, 8, 4096, 10000.0)),
        (llama3, 128256, (14336, 8, 8192, 500000.0)),
        ({**llama3, **small}, 128256, (8192, 8, 131072, 500000.0)),
    ]
    for params, vocabulary_size, expected in releases:
        c = meta._config(params, vocabulary_size, False)
        found = (c.intermediate_size, c.num_key_value_heads, c.max_position_embeddings, c.rope_theta)
        assert found == expected and c.eos_token_id == (2 if vocabulary_size == 32000 else meta.EOS_3)
    assert c.rope_parameters["factor"] == 32.0


def _without_last(d: Path) -> None:
    (d / "consolidated.03.pth").unlink()


def _without_one(d: Path) -> None:
    (d / "consolidated.01.pth").unlink()


def _cut(d: Path) -> None:
    whole = (d / "consolidated.02.pth").read_bytes()
    (d / "consolidated.02.pth").write_bytes(whole[: len(whole) // 2])


def _other_tensors(d: Path) -> None:
    import torch

    torch.save({"norm.weight": torch.ones(48)}, d / "consolidated.02.pth")


def _params(text: str):
    return lambda d: (d / "params.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_without_one, r"consolidated\.01\.pth is missing"),
        (_without_last, "36 rows of queries, the model is 48 wide: a file is missing"),
        (_cut, r"consolidated\.02\.pth"),
        (_other_tensors, r"consolidated\.02\.pth and consolidated\.00\.pth do not both hold"),
        (lambda d: (d / "params.json").unlink(), "no params.json to say how many heads"),
        (_params("{"), "not valid JSON"),
        (_params(json.dumps({k: v for k, v in PARAMS.items() if k != "n_heads"})), "lacks 'n_heads'"),
        (_params(json.dumps({**PARAMS, "n_heads": 7})), "does not divide"),
        (_params(json.dumps({**PARAMS, "dim": "48"})), "makes no sense"),
        (_params(json.dumps({**PARAMS, "multiple_of": 256})), "do not fit llama"),
    ],
)
def test_what_cannot_be_used(tmp_path, damage, why):
    written(tmp_path, 4)
    damage(tmp_path)
    with pytest.raises(WeightsError, match=why) as raised:
        load(tmp_path, device="cpu")
    assert len(str(raised.value).splitlines()) >= 2


# --- tokenizer.model --------------------------------------------------------------------------------------------------


def message(*fields) -> bytes:
    """A protobuf message of (number, value): int, float or bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += bytes([number << 3 | 5]) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += bytes([number << 3, value])
        else:
            size = len(value)
            out += bytes([number << 3 | 2, size & 127 | 128, size >> 7]) + value
    return out


def stories(directory: Path) -> None:
    """tokenizer.model of the pieces and scores of llama2.c's tok512.bin."""
    if not (DATA / "stories260k").exists():
        pytest.skip(f"no stories260k in {DATA} (ZOO_TEST_DATA)")
    data, at, pieces = (DATA / "stories260k" / "tok512.bin").read_bytes(), 4, []
    while at < len(data):
        score, size = struct.unpack_from("<fi", data, at)
        pieces.append((data[at + 8 : at + 8 + size].decode(), score))
        at += 8 + size
    model = b""
    for i, (text, score) in enumerate(pieces):
        kind = {0: 2, 1: 3, 2: 3}.get(i, 6 if 3 <= i < 259 else 1)
        text = {0: "<unk>", 1: "<s>", 2: "</s>"}.get(i, text.replace(" ", "\u2581") if kind == 1 else text)
        model += message((1, message((1, text.encode()), (2, score), (3, kind))))
    model += message((2, message((3, 2)))) + message((3, message((1, b"identity"), (3, 1), (4, 0), (5, 1))))
    (directory / "tokenizer.model").write_bytes(model)


TEXTS = ["Once upon a time, there was a little girl.", "  two  spaces ", "naïve 猫 🦙\n\ttab", "", "x", "One day, Tim"]


def test_sentencepiece_cuts_as_the_tokenizer_json_made_of_it(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    stories(tmp_path)
    ours = vocabulary.read(tmp_path / "tokenizer.model", 512)
    theirs = tokenizers.Tokenizer.from_file(str(DATA / "stories260k" / "hf" / "tokenizer.json"))
    shakespeare = (DATA / "text" / "tinyshakespeare.txt").read_text()[:20_000]
    for text in [*TEXTS, shakespeare]:
        ids = ours.encode(text).ids
        assert ids == theirs.encode(text).ids and ours.decode(ids) == theirs.decode(ids)


def test_sentencepiece_cuts_as_the_library_does(tmp_path):
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed; it is the reference")
    text = DATA / "text" / "tinyshakespeare.txt"
    if not text.exists():
        pytest.skip(f"no text in {DATA} (ZOO_TEST_DATA)")
    library.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=1000, minloglevel=2,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
    )  # fmt: skip
    theirs = library.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = vocabulary.read(tmp_path / "tokenizer.model", 1000)
    for line in [*TEXTS, *text.read_text()[:30_000].splitlines()]:
        assert ours.encode(line).ids == [1, *theirs.encode(line)] and ours.decode(theirs.encode(line)) == line


def by_rank(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's algorithm, as its documentation has it: the adjacent pair of lowest rank is merged, until none is."""
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([byte]) for byte in piece]
    while True:
        found = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not found:
            return [ranks[part] for part in parts]
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_tiktoken_files_cut_as_its_algorithm_does(tmp_path):
    source = DATA / "whisper-assets" / "gpt2.tiktoken"
    if not source.exists():
        pytest.skip(f"no {source} (ZOO_TEST_DATA)")
    regex = pytest.importorskip("regex", reason="regex is not installed; it knows the classes of Llama 3's expression")
    lines = source.read_bytes().splitlines()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    ours = vocabulary.read(tmp_path / "tokenizer.model", len(ranks) + 256)
    text = "".join([*TEXTS, (DATA / "text" / "tinyshakespeare.txt").read_text()[:20_000], "I'll 12345 it's\r\n\n done"])
    expected = [i for piece in regex.findall(vocabulary.SPLIT_3, text) for i in by_rank(piece.encode(), ranks)]
    assert ours.encode(text).ids == [len(ranks), *expected] and ours.decode(expected) == text
    special = ours.encode("<|start_header_id|>user<|end_header_id|>a<|eot_id|>", add_special_tokens=False).ids
    assert [special[0], special[2], special[4]] == [len(ranks) + 6, len(ranks) + 7, len(ranks) + 9]
    assert ours.token_to_id("<|reserved_special_token_255|>") == len(ranks) + 255


@pytest.mark.parametrize(
    "data", [b"", b"\n\xff", b"\nhello", b"hello world\n", b"aGk= 0\n", message((1, message((1, b"<s>"), (2, 0.0))))]
)
def test_a_tokenizer_model_that_is_none(tmp_path, data):
    from zoo.llama.tokenizer import Tokenizer

    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(WeightsError, match=r"put a tokenizer\.json beside it"):
        Tokenizer(tmp_path, 96)


def test_a_real_model_in_metas_files_writes_the_known_text(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="torch is not installed; it writes the files")
    stories(tmp_path)
    raw = np.fromfile(DATA / "stories260k" / "stories260K.bin", np.float32, offset=28)
    at, tensors = 0, {}

    def take(name: str, *shape: int) -> None:
        nonlocal at
        count = int(np.prod(shape))
        tensors[name], at = torch.tensor(raw[at : at + count].reshape(shape)), at + count

    take("tok_embeddings.weight", 512, 64)
    for name, shape in [("attention_norm", (64,)), ("attention.wq", (64, 64)), ("attention.wk", (32, 64)),
                        ("attention.wv", (32, 64)), ("attention.wo", (64, 64)), ("ffn_norm", (64,)),
                        ("feed_forward.w1", (172, 64)), ("feed_forward.w2", (64, 172)),
                        ("feed_forward.w3", (172, 64))]:  # fmt: skip
        for i in range(5):
            take(f"layers.{i}.{name}.weight", *shape)
    take("norm.weight", 64)
    for i, part in enumerate(split(tensors, 2, 1)):
        torch.save(part, tmp_path / f"consolidated.{i:02d}.pth")
    params = {"dim": 64, "n_layers": 5, "n_heads": 8, "n_kv_heads": 4, "multiple_of": 4, "norm_eps": 1e-5,
              "vocab_size": 512, "max_seq_len": 512}  # fmt: skip
    (tmp_path / "params.json").write_text(json.dumps(params))
    case = json.loads((DATA / "stories260k" / "expected.json").read_text())["cases"][0]
    model = load(tmp_path, device="cpu").prepare()
    prompt, ids = case["prompt_ids"], case["ids"]
    assert [*prompt, *generate(model, prompt, max_tokens=len(ids) - len(prompt))] == ids
    assert main(["run", "llama", "Once upon a time", "--weights", str(tmp_path), "--max-tokens", "8", "--quiet"]) == 0
    assert capsys.readouterr().out == "Once upon a time, there was a little girl\n"
