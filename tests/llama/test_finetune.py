"""Training on text: the rows, what is learned of them, adapters as PEFT has them, and that a run learns."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.cli.main import main
from zoo.core.errors import DataError, WeightsError
from zoo.core.tensor import Tensor
from zoo.hub import adapter, load
from zoo.llama.data import Example, files, read, texts
from zoo.llama.finetune import TARGETS, finetune, loss
from zoo.llama.packing import IGNORED, pack
from zoo.llama.tokenizer import Tokenizer
from zoo.nn import Linear, lora
from zoo.nn.quantized import formats, quantize

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")


def rows(tiny, *lines) -> list[Example]:
    path = tiny / "rows.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return list(read(path, Tokenizer(tiny, 258)))


def learned(tiny, example: Example) -> str:
    return Tokenizer(tiny, 258).decode([i for i, m in zip(example.ids, example.learned, strict=True) if m])


def test_what_is_learned(tiny):
    turns = [("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V"), ("assistant", "B")]
    text, completion, chat = rows(
        tiny,
        {"text": "all of it"},
        "",
        {"prompt": "two + two = ", "completion": "four"},
        {"messages": [{"role": role, "content": content} for role, content in turns]},
    )
    assert learned(tiny, text) == "all of it" and text.ids[-1] == 257 and text.learned[-1]
    assert learned(tiny, completion) == "four" and completion.ids[0] == 256 and not completion.learned[0]
    assert learned(tiny, chat) == "A\nB\n" and len(chat.ids) == len(chat.learned)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting property name"),
        ("[1]", "no JSON object"),
        ({"prompt": "x"}, "'prompt', and no completion"),
        ({"prompt": "x", "completion": " "}, "text is empty"),
        ({"text": ""}, "text is empty"),
        ({"words": "x"}, "'words'"),
        ({"text": 3}, "text is no text but 3"),
        ({"messages": "x"}, "not a list"),
        ({"messages": [{"role": "user", "content": "x"}]}, "nobody answers"),
        ({"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]}, "no tools here"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tiny, line, why):
    with pytest.raises(DataError, match="cannot use 1 of 2 rows") as raised:
        rows(tiny, {"text": "good"}, line)
    assert raised.value.why.startswith(f"{tiny / 'rows.jsonl'}:2: ") and why in raised.value.why


def test_files(tiny, tmp_path):
    with pytest.raises(DataError, match="neither train"):
        files(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        files(tmp_path / "absent")
    (tmp_path / "train.txt").write_text("x")
    assert files(tmp_path) == (tmp_path / "train.txt", None)
    (tmp_path / "valid.jsonl").write_text("x")
    assert files(tmp_path)[1] == tmp_path / "valid.jsonl"
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no rows"):
        list(read(tmp_path / "empty.jsonl", Tokenizer(tiny, 258)))
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    with pytest.raises(DataError, match="utf-8"):
        [list(parts) for parts in texts(tmp_path / "latin.txt", Tokenizer(tiny, 258))]


def test_packing():
    first, second = Example([1, 2, 3], [False, True, True]), Example([4, 5, 6, 7], [True, False, True, True])
    long, nothing = Example(list(range(10, 20)), [True] * 10), Example([8, 9], [True, False])
    inputs, targets, texts = pack([first, second, long, nothing], 5)
    assert inputs.tolist() == [[1, 2, 4, 5, 6], [10, 11, 12, 13, 14], [15, 16, 17, 18, 0]]
    assert targets.tolist() == [[2, 3, IGNORED, 6, 7], [11, 12, 13, 14, 15], [16, 17, 18, 19, IGNORED]]
    assert texts.tolist() == [[0, 0, 1, 1, 1], [0] * 5, [0] * 5]
    with pytest.raises(DataError, match="nothing to learn"):
        pack([Example([1], [True])], 4)


def test_every_text_is_packed_whole_and_once():
    rng = np.random.default_rng(0)
    examples = [Example(rng.integers(1, 99, n).tolist(), [True] * n) for n in rng.integers(2, 34, 200)]
    inputs, targets, texts = pack(examples, 32)
    found = []
    for row in range(len(inputs)):
        for number in range(texts[row].max() + 1):
            own = (texts[row] == number) & (targets[row] != IGNORED)
            assert (np.diff(np.flatnonzero(own)) == 1).all()
            found.append([int(inputs[row][own][0]), *targets[row][own].tolist()])
    assert sorted(found) == sorted(example.ids for example in examples)
    assert (targets != IGNORED).mean() > 0.9  # one text to a row would fill half


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_packed_text_is_learned_as_if_it_were_alone(tiny, device):
    model = load(tiny, device=device)
    rng = np.random.default_rng(0)
    examples = [Example(rng.integers(0, 256, n).tolist(), [False] * 2 + [True] * (n - 2)) for n in (9, 7, 6, 12, 4)]
    packed = pack(examples, 20)
    assert len(packed[0]) == 2
    alone = [pack([example], 20) for example in examples]

    def gradients(parts) -> tuple[float, dict[str, np.ndarray]]:
        live = model.to(zoo.Autodiff(model.device))
        value = loss(live, tuple(zoo.tensor(part, device=model.device) for part in parts))
        found = value.backward()
        return float(value), {path: found[p].numpy() for path, p in live.parameters().items()}

    value, mine = gradients(packed)
    apart, theirs = gradients([np.concatenate(parts) for parts in zip(*alone, strict=True)])
    assert value == pytest.approx(apart, rel=1e-6)
    for path, gradient in mine.items():
        assert np.linalg.norm(gradient - theirs[path]) < 1e-5 * np.linalg.norm(theirs[path]), path
    mixed, _ = gradients((packed[0], packed[1], np.zeros_like(packed[2])))
    assert abs(mixed - apart) > 1e-5 * apart  # what it would be if texts saw those before them


def text_for(tiny) -> Path:
    path = tiny / "text.txt"
    path.write_text("the cat sat on the mat. " * 60)
    return path


def run(tiny, out, **settings):
    model = load(tiny, device="cpu")
    return model, *finetune(model, data=text_for(tiny), out=out, context=32, quiet=True, **settings)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_learns_and_is_loaded_again(tiny, tmp_path, rank, capsys):
    model, done = run(tiny, tmp_path / "out", epochs=3, lr=1e-2, lora=rank)
    assert done.after < (0.5 if rank else 0.3) * done.before
    again = load(tmp_path / "out", device="cpu")
    ids = Tensor(again.device.from_host(np.array([[256, 116, 104]], np.int32)), again.device)
    assert np.allclose(again(ids).numpy(), model(ids).numpy(), atol=1e-5)
    assert main(["run", "llama", "the cat", "--weights", str(tmp_path / "out"), "--max-tokens", "4", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("the cat")
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert ("adapter_model.safetensors" in kept) == bool(rank) and ("tokenizer.json" in kept) == (not rank)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_stopped_run_goes_on_to_the_same_bits(tiny, tmp_path, rank, monkeypatch):
    whole, _ = run(tiny, tmp_path / "whole", epochs=2, lr=1e-2, lora=rank)
    from zoo.train import Learner, RunDirectory

    fit = Learner.fit
    monkeypatch.setattr(Learner, "fit", lambda self, epochs: fit(self, steps=7))
    run(tiny, tmp_path / "parts", epochs=2, lr=1e-2, lora=rank)
    monkeypatch.setattr(Learner, "fit", fit)
    parts, _ = run(tiny, tmp_path / "parts", epochs=2, lr=1e-2, lora=rank, resume=True)
    mine, theirs = whole.state(), parts.state()
    assert all(np.array_equal(mine[path].numpy(), theirs[path].numpy()) for path in mine)
    checkpoint = RunDirectory(tmp_path / "parts").checkpoints()[0].stat().st_size
    assert not rank or checkpoint < (tmp_path / "whole" / "adapter_model.safetensors").stat().st_size * 3 + 9000


def test_peft_reads_our_adapter_and_we_theirs(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed; PEFT runs on it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    peft = pytest.importorskip("peft", reason="peft is not installed; it is the reference")
    config = transformers.LlamaConfig(vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                      num_attention_heads=2, initializer_range=0.3)  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "base")
    ids = np.random.default_rng(0).integers(0, 60, (1, 9))

    def logits(model) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor(ids)).logits.numpy()

    ours = load(tmp_path / "base", device="numpy")
    lora.attach(ours, 3, alpha=5, targets=TARGETS)
    rng = np.random.default_rng(1)
    for path, parameter in ours.parameters().items():
        ours.set(path, zoo.tensor(rng.normal(0, 0.2, parameter.shape).astype(np.float32), device=ours.device))
    mine = ours(zoo.tensor(ids.astype(np.int32), device=ours.device)).numpy()
    adapter.save(ours, tmp_path / "ours", str(tmp_path / "base"))
    assert np.abs(mine - logits(theirs)).max() > 0.1  # it does something
    read_by_peft = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    assert np.allclose(logits(read_by_peft), mine, atol=1e-4)

    fresh = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(r=4, lora_alpha=7, target_modules=["q_proj", "down_proj"], use_rslora=True)
    made = peft.get_peft_model(fresh, settings).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    made.save_pretrained(tmp_path / "theirs")
    found = load(tmp_path / "theirs", device="numpy")
    assert np.allclose(found(zoo.tensor(ids.astype(np.int32), device=found.device)).numpy(), logits(made), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"peft_type": "IA3"}, "not a LoRA"),
        ({"r": 0}, "not a LoRA"),
        ({"target_modules": "all-linear"}, "not a LoRA"),
        ({"use_dora": True}, "lora_magnitude_vector is missing"),
        ({"use_qalora": True}, "use_qalora"),
        ({"some_new_setting": 3}, "some_new_setting"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa"),
        ({"rank_pattern": {"q_proj": "2"}}, "not a LoRA"),
        ({"alpha_pattern": {"(": 2}}, "not a LoRA"),
        ({"rank_pattern": {"layers.0.self_attn.q_proj": 3}}, "was expected"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens cannot be adapted"),
        ({"bias": "all"}, "bias"),
        ({"r": 3}, "was expected"),
        ({"target_modules": ["q_proj", "o_proj"]}, "is missing"),
        ({"target_modules": ["nothing"]}, "no layer named nothing"),
        ({"base_model_name_or_path": ""}, "to which model"),
    ],
)
def test_adapters_that_cannot_be_used(tiny, tmp_path, change, why):
    model = load(tiny, device="cpu")
    lora.attach(model, 2, targets=("q_proj",))
    adapter.save(model, tmp_path / "a", str(tiny))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(zoo.ZooError, match=why):
        load(tmp_path / "a", device="cpu")


def test_a_run_that_cannot_begin(tiny, tmp_path):
    (tiny / "short.txt").write_text("x")
    model = load(tiny, device="cpu")
    for settings, why in (({"context": 100}, "too long"), ({"context": 32}, "too little text")):
        with pytest.raises(zoo.ZooError, match=why):
            list(finetune(model, data=tiny / "short.txt", out=tmp_path / "out", quiet=True, **settings))
    model.source = None
    with pytest.raises(WeightsError, match="tokenizer"):
        list(finetune(model, data=text_for(tiny), out=tmp_path / "out"))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("format", [None, "int8", "int4"])
def test_a_real_model_learns_new_text(tmp_path, format, dora):
    """Perplexity of the last tenth falls from 114 to 38, with DoRA to 37."""
    if not (DATA / "stories260k").exists():
        pytest.skip(f"no stories260k in {DATA} (ZOO_TEST_DATA)")
    text = (DATA / "text" / "tinyshakespeare.txt").read_text()[:30_000]
    (tmp_path / "some.txt").write_text(text)
    model = load(DATA / "stories260k" / "hf", device="cpu")
    if format is not None:  # "int4" by itself makes so narrow a model int8
        matrices = {path for path, layer in model.named_modules() if isinstance(layer, Linear)}
        fits = {path for path in matrices if model.spec()[f"{path}.weight"].shape[1] % 32 == 0}
        quantize(model, format, layers=dict.fromkeys(fits, format))
        assert set(formats(model).values()) == {format} and len(formats(model)) == 30
    settings = {"epochs": 1, "lora": 4, "dora": dora, "context": 64, "batch": 8, "quiet": True}
    (done,) = finetune(model, data=tmp_path / "some.txt", out=tmp_path / "out", **settings)
    assert done.before > 100 and done.after < 0.36 * done.before
