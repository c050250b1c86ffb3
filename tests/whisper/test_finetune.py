"""Training on recordings: the rows, what is learned of them, masks, and that a run learns, stops and goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.cli.main import main
from zoo.core.errors import DataError
from zoo.core.tensor import Tensor
from zoo.hub import load as load_any
from zoo.hub import save
from zoo.nn import lora
from zoo.port import Port
from zoo.train import Learner, tokens
from zoo.whisper.audio import HOP, SAMPLE_RATE
from zoo.whisper.augment import SpecAugment, starts
from zoo.whisper.config import WhisperConfig
from zoo.whisper.data import IGNORED, ByLength, Clips, Masking, files, read
from zoo.whisper.finetune import TARGETS, finetune, loss, said, split
from zoo.whisper.model import Whisper
from zoo.whisper.tokenizer import Tokenizer
from zoo.whisper.weights import table

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed; recordings are read by it")

PORT = Port(name="whisper", task="", config=WhisperConfig, model=Whisper, weights=table, run=lambda model: [])
WINDOW = 2.0
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
           "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]  # fmt: skip
EOT, SOT, EN, DE, TRANSLATE, TRANSCRIBE, PREV, PLAIN, ZERO = (256 + i for i in (0, 1, 2, 3, 4, 5, 7, 9, 10))


def load(ref: Path, device: str = "cpu") -> Whisper:
    model: Whisper = load_any(ref, port=PORT, device=device)
    return model


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A Whisper of random weights that hears 2 seconds; its text tokens are the 256 bytes."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    core.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(101)])
    directory = tmp_path / "tiny"
    config = WhisperConfig(
        vocab_size=core.get_vocab_size(), num_mel_bins=16, encoder_layers=1, encoder_attention_heads=2,
        decoder_layers=1, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=16,
        max_source_positions=100, max_target_positions=48, decoder_start_token_id=SOT, bos_token_id=EOT,
        eos_token_id=EOT, pad_token_id=EOT,
    )  # fmt: skip
    model = Whisper(config).init(5, "cpu")
    for name, size in (
        ("encoder.embed_positions", 0.05),
        ("decoder.embed_positions", 0.2),
        ("decoder.embed_tokens", 0.5),
    ):
        model.set(f"model.{name}.weight", model.state()[f"model.{name}.weight"] * size)
    save(model, directory, port="whisper")
    core.save(str(directory / "tokenizer.json"))
    languages = {"is_multilingual": True, "lang_to_id": {"<|en|>": EN, "<|de|>": DE}}
    (directory / "generation_config.json").write_text(json.dumps(languages))
    return directory


def tone(path: Path, seconds: float, pitch: float = 440.0) -> Path:
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    soundfile.write(path, (0.3 * np.sin(2 * np.pi * pitch * t)).astype(np.float32), SAMPLE_RATE)
    return path


def manifest(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def rows(tiny: Path, *lines: Any, language: str = "en", task: str = "transcribe") -> list[Any]:
    if not (tiny / "a.wav").exists():
        tone(tiny / "a.wav", 1.5), tone(tiny / "long.wav", 3.0, 300)
    model = load(tiny, device="numpy")
    return read(manifest(tiny, *lines), Tokenizer.of(model), model.config, language=language, task=task)


def pieces(text: str) -> list[int]:
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return [alphabet.index("Ġ" if c == " " else c) for c in text]


def test_what_is_learned(tiny):
    plain, timed, part, after = rows(
        tiny,
        {"audio": "a.wav", "text": "ab"},
        "",
        {"audio": "a.wav", "text": "<|0.10|> ab<|0.60|><|1.00|> c<|1.50|>", "language": "de"},
        {"audio": "long.wav", "text": " ab ", "start": 0.5, "end": 2.25},
        {"audio": "a.wav", "text": "b", "prompt": "aa"},
    )
    assert plain.ids == (SOT, EN, TRANSCRIBE, PLAIN, *pieces(" ab"), EOT) and plain.given == 0
    times = [ZERO + 5, *pieces(" ab"), ZERO + 30, ZERO + 50, *pieces(" c"), ZERO + 75]
    assert timed.ids == (SOT, DE, TRANSCRIBE, *times, EOT)
    assert part.ids == plain.ids and (part.start, part.seconds) == (0.5, 1.75)
    assert after.ids == (PREV, *pieces(" aa"), SOT, EN, TRANSCRIBE, PLAIN, *pieces(" b"), EOT)
    model = load(tiny, device="numpy")
    features, inputs, targets, frames = Clips([part, after], model.config, EOT)[np.array([0, 1])]
    assert features.shape == (2, 200, 16) and frames.tolist() == [175, 150]
    assert inputs[0].tolist() == [*plain.ids[:-1], EOT, EOT, EOT]
    assert targets[0].tolist() == [*plain.ids[1:], *[IGNORED] * 3]
    assert targets[1].tolist() == [IGNORED] * 4 + list(after.ids[5:])  # the prompt is seen, not learned
    one = rows(tiny, {"audio": "a.wav", "text": "b"}, task="translate", language="de")[0]
    assert one.ids[:3] == (SOT, DE, TRANSLATE)


def test_a_clip_is_its_part_of_the_file(tiny):
    (clip,) = rows(tiny, {"audio": "long.wav", "text": "x", "start": 1.0, "end": 1.5})
    whole, _ = soundfile.read(tiny / "long.wav", dtype="float32")
    assert np.array_equal(clip.samples(), whole[SAMPLE_RATE : SAMPLE_RATE * 3 // 2])


BAD = [
    ("{", "Expecting property name"),
    ("[1]", "no JSON object"),
    ({"audio": "a.wav"}, "no text"),
    ({"text": "x"}, "no audio"),
    ({"audio": "absent.wav", "text": "x"}, "absent.wav"),
    ({"audio": "rows.jsonl", "text": "x"}, "cannot read"),
    ({"audio": "a.wav", "text": "  "}, "empty"),
    ({"audio": "a.wav", "text": "<|0.00|><|1.00|>"}, "empty"),
    ({"audio": "a.wav", "text": "x" * 60}, "65 tokens; the model writes 48"),
    ({"audio": "long.wav", "text": "x"}, "3.00 s long; the model hears 2 s"),
    ({"audio": "a.wav", "text": "x", "start": 1.0, "end": 9.0}, "ends at 9 s"),
    ({"audio": "a.wav", "text": "x", "start": 1.0, "end": 0.5}, "from 1.0 to 0.5"),
    ({"audio": "a.wav", "text": "x", "language": "fr"}, "language 'fr'"),
    ({"audio": "a.wav", "text": "<|1.00|> x<|0.50|>"}, "<|0.50|>"),
    ({"audio": "a.wav", "text": "<|1.00|> x<|1.90|>"}, "after the end"),
]


@pytest.mark.parametrize(("line", "why"), BAD)
def test_a_row_that_cannot_be_used_is_named(tiny, line, why):
    with pytest.raises(DataError, match="1 of 2 rows") as raised:
        rows(tiny, {"audio": "a.wav", "text": "good"}, line)
    assert raised.value.why.startswith(f"{tiny / 'rows.jsonl'}:2: ") and why in raised.value.why
    assert len(raised.value.why.splitlines()) == 1


def test_all_bad_rows_are_told_in_one_go(tiny):
    with pytest.raises(DataError, match=f"{len(BAD)} of {len(BAD) + 1} rows") as raised:
        rows(tiny, {"audio": "a.wav", "text": "good"}, *(line for line, _ in BAD))
    told = raised.value.why.splitlines()
    assert [line.split(":")[:2] for line in told[:8]] == [[str(tiny / "rows.jsonl"), str(n)] for n in range(2, 10)]
    assert told[8:] == [f"... and {len(BAD) - 8} more"]


def test_files(tmp_path):
    for place, why in ((tmp_path, "neither train.jsonl"), (tmp_path / "absent", "no such file or directory")):
        with pytest.raises(DataError, match=why):
            files(place)
    one = manifest(tmp_path, name="train.jsonl")
    assert files(one) == files(tmp_path) == (one, None)
    assert files(tmp_path if manifest(tmp_path, name="valid.jsonl") else one)[1] == tmp_path / "valid.jsonl"
    with pytest.raises(DataError, match="no rows"):
        read(one, None, None, language="en", task="transcribe")  # type: ignore[arg-type]
    one.write_bytes(b"\xe9")
    with pytest.raises(DataError, match="UTF-8"):
        read(one, None, None, language="en", task="transcribe")  # type: ignore[arg-type]


# masks and batches


def test_masks_are_as_many_and_as_long_as_asked():
    rng = np.random.default_rng(0)
    counts = [len(starts(1000, 0.05, 10, rng)) for _ in range(400)]
    assert np.mean(counts) == 5 and {*counts} == {5}
    assert 4.3 < np.mean([len(starts(900, 0.05, 10, rng)) for _ in range(400)]) < 4.7  # 4.5: 4 or 5
    assert all(s <= 990 for _ in range(50) for s in starts(1000, 0.9, 10, rng)) and len(starts(5, 1.0, 10, rng)) == 0
    features = np.ones((200, 80), np.float32)
    SpecAugment(0.2, 5, 0.1, 4)(features, 100, rng)
    assert np.all(features[100:].any(axis=1)), "what is silence behind the sound stays"
    gone = ~features[:100].any(axis=1)
    assert 12 <= gone.sum() <= 20 and (~features.any(axis=0)).sum() == 8
    assert np.array_equal(SpecAugment()(np.ones((9, 9)), 9, rng), np.ones((9, 9)))


def test_batches_are_of_like_lengths_once_each_and_follow_from_the_seed():
    class Told(Clips):
        def __getitem__(self, chosen):
            return (np.array([len(self.clips[int(i)].ids) for i in chosen]), chosen)

    lengths = np.random.default_rng(0).integers(5, 100, 203)
    data = Told([SimpleNamespace(ids=(0,) * int(n)) for n in lengths], None, 0)  # type: ignore[arg-type,misc]
    loader = ByLength(data, 4, seed=1)
    first, second = (list(loader.batches(epoch)) for epoch in (0, 1))
    for epoch in (first, second):
        assert sorted(i for _, chosen in epoch for i in chosen) == list(range(203)) and len(epoch) == len(loader) == 51
        assert np.mean([seen.max() - seen.min() for seen, _ in epoch]) < 12  # at random it is about 57
    assert [list(c) for _, c in first] != [list(c) for _, c in second]
    assert [list(c) for _, c in loader.batches(1, 7)] == [list(c) for _, c in second[7:]]


def test_masking_is_the_same_for_the_same_batch(tiny):
    (clip,) = rows(tiny, {"audio": "a.wav", "text": "x"})
    data = Clips([clip] * 6, load(tiny, device="numpy").config, EOT)
    loader = ByLength(data, 2, seed=3, transform=Masking(SpecAugment(0.3, 10)))
    a, b = (list(loader.batches(2)) for _ in range(2))
    assert all(np.array_equal(x, y) for m, n in zip(a, b, strict=True) for x, y in zip(m, n, strict=True))
    assert not np.array_equal(a[0][0][0], a[0][0][1]), "rows have masks of their own"


# training


def speech(tiny: Path, count: int = 6) -> Path:
    """Tones with their names: clips that can be told apart."""
    names = ["low", "middle", "high tone", "higher", "e", "do re mi"]
    lines = []
    for i in range(count):
        tone(tiny / f"{i}.wav", 0.5 + 0.2 * i, 150 * 2**i if i < 6 else 100)
        lines.append({"audio": f"{i}.wav", "text": names[i]})
    manifest(tiny, *lines, name="train.jsonl"), manifest(tiny, *lines[:2], name="valid.jsonl")
    return tiny


def run(tiny: Path, out: Path, **settings: Any) -> tuple[Whisper, Any]:
    model = load(tiny)
    settings = {"batch": 3, "lr": 1e-2, **settings}
    (done,) = finetune(model, data=speech(tiny), out=out, quiet=True, **settings)
    return model, done


@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_learns_and_is_loaded_again(tiny, tmp_path, rank):
    frozen = load(tiny).state()
    model, done = run(tiny, tmp_path / "out", epochs=25, batch=1, mask_time_prob=0.0, lora=rank)
    assert done.before > 5 and done.after < (0.5 * done.before if rank else 0.2) and done.steps == 150
    again = load(tmp_path / "out")
    unseen = read(tiny / "valid.jsonl", Tokenizer.of(load(tiny)), model.config, language="en", task="transcribe")
    found = tokens.nats_per_token(said, again, Clips(unseen, model.config, EOT))
    assert found == pytest.approx(done.after, rel=1e-4)
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert ("adapter_model.safetensors" in kept) == bool(rank) and ("tokenizer.json" in kept) == (not rank)
    if rank:
        assert {path.rpartition(".")[2] for path in lora.layers(model)} == {*TARGETS}
        for path, layer in lora.layers(model).items():
            assert np.array_equal(layer.base.weight, frozen[f"{path}.weight"]), path
        assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] is None
        trained = sum(p.size for p in model.parameters().values())
        assert done.trainable == trained == sum(layer.lora_A.weight.size + layer.lora_B.weight.size
                                                for layer in lora.layers(model).values())  # fmt: skip
    else:
        places = "model.encoder.embed_positions.weight"
        changed = {path for path, tensor in model.state().items() if not np.array_equal(tensor, frozen[path])}
        assert changed == set(frozen) - {places}, "all but the places in the audio"


@pytest.mark.parametrize("rank", [0, 2])
def test_a_stopped_run_goes_on_to_the_same_bits(tiny, tmp_path, rank, monkeypatch):
    settings = {"epochs": 3, "lora": rank, "mask_feature_prob": 0.2, "mask_feature_length": 2}
    whole, _ = run(tiny, tmp_path / "whole", **settings)
    fit = Learner.fit
    monkeypatch.setattr(Learner, "fit", lambda self, epochs: fit(self, steps=3))
    run(tiny, tmp_path / "parts", **settings)
    monkeypatch.setattr(Learner, "fit", fit)
    parts, _ = run(tiny, tmp_path / "parts", resume=True, **settings)
    mine, theirs = whole.state(), parts.state()
    assert all(np.array_equal(mine[path].numpy(), theirs[path].numpy()) for path in mine)
    with pytest.raises(zoo.ZooError, match="other settings"):
        run(tiny, tmp_path / "parts", resume=True, **{**settings, "task": "translate"})


def test_accumulated_and_recomputed_is_one_large_batch(tiny, tmp_path):
    """Sums in another order: 1e-6 of a gradient, and AdamW's first steps go by its sign."""
    settings = {"epochs": 1, "mask_time_prob": 0.0, "lr": 1e-3}
    large, _ = run(tiny, tmp_path / "large", batch=6, **settings)
    small, _ = run(tiny, tmp_path / "small", batch=2, accumulate=3, checkpoint=True, **settings)
    for path, tensor in large.state().items():
        assert np.abs(np.asarray(tensor) - np.asarray(small.state()[path])).mean() < 2e-5, path


def test_a_run_that_cannot_begin(tiny, tmp_path):
    tone(tiny / "a.wav", 1.0)
    model = load(tiny)
    with pytest.raises(DataError, match="too little data"):
        list(finetune(model, data=manifest(tiny, {"audio": "a.wav", "text": "x"}), out=tmp_path / "out", quiet=True))
    assert not (tmp_path / "out").exists()


def test_the_program(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--weights", str(tiny), "--data", str(speech(tiny)), "--out", str(out), "--epochs", "1", "--lora", "2"]
    assert main(["finetune", "whisper", *options, "--language", "german", "--quiet", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["results"][0]["clips"] == 6 and done["results"][0]["unseen"] == 2
    assert main(["finetune", "whisper", *options, "--language", "klingon"]) == 1
    assert "unknown language" in capsys.readouterr().err


def test_a_tenth_is_held_out():
    clips: Any = list(range(25))
    train, held = split(clips)
    assert sorted(train + held) == clips and held == [0, 10, 20]
    assert [len(part) for part in split(clips[:2])] == [1, 1]


def test_loss_and_gradients_are_those_of_transformers(tiny):
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    model = load(tiny)
    fields = {**vars(model.config)}
    fields.pop("layout")
    config = transformers.WhisperConfig(**fields, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    theirs = transformers.WhisperForConditionalGeneration(config).train()
    state = {path: torch.tensor(np.asarray(value)) for path, value in model.state().items()}
    for name in ("model.encoder.conv1.weight", "model.encoder.conv2.weight"):
        state[name] = state[name].permute(0, 2, 1)
    missing = theirs.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["proj_out.weight"] and not missing.unexpected_keys
    theirs.tie_weights()
    clips = rows(
        tiny, {"audio": "a.wav", "text": "<|0.00|> abc<|1.20|>", "prompt": "d"}, {"audio": "a.wav", "text": "x"}
    )
    batch = Clips(clips, model.config, EOT)[np.array([0, 1])]
    features, inputs, targets, _ = (torch.tensor(part) for part in batch)
    wanted = theirs(features.transpose(1, 2), decoder_input_ids=inputs.long(), labels=targets.long()).loss
    wanted.backward()
    model.model.encoder.embed_positions.freeze()
    live = model.to(zoo.Autodiff(model.device))
    value = loss(live, tuple(Tensor(model.device.from_host(part), model.device) for part in batch))
    assert float(value) == pytest.approx(float(wanted.detach()), rel=1e-5)  # float32, sums in another order
    found = value.backward()
    expected = {path: p.grad for path, p in theirs.named_parameters() if p.grad is not None}
    mine = {path: found[p].numpy() for path, p in live.parameters().items()}
    assert set(mine) == {re.sub("^proj_out", "model.decoder.embed_tokens", path) for path in expected}
    for path, gradient in mine.items():
        theirs_is = expected[path].numpy()
        theirs_is = theirs_is.transpose(0, 2, 1) if ".conv" in path and path.endswith("weight") else theirs_is
        assert np.linalg.norm(gradient - theirs_is) < 1e-4 * np.linalg.norm(theirs_is) + 1e-7, path


def test_the_window_is_the_models(tiny):
    assert load(tiny, device="numpy").config.frames * HOP == WINDOW * SAMPLE_RATE


def test_recordings_that_cannot_be_used_are_named_and_left_out_when_asked(tiny, tmp_path, capsys):
    data = speech(tiny)
    whole = (data / "3.wav").read_bytes()
    (data / "3.wav").write_bytes(whole[: len(whole) // 2])  # seen at once: the header claims more
    with pytest.raises(DataError, match=r"1 of 6 rows of .*train\.jsonl\n.*train\.jsonl:4: "):
        run_on(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (data / "3.wav").write_bytes(whole)
    soundfile.write(data / "2.flac", soundfile.read(data / "2.wav")[0], SAMPLE_RATE)
    sound = bytearray((data / "2.flac").read_bytes())
    del sound[len(sound) // 2 :]  # seen when it is decoded
    (data / "2.flac").write_bytes(sound)
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    rows[2]["audio"] = "2.flac"
    manifest(data, *rows, {"audio": "absent.wav", "text": "x"}, name="train.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl:7: absent.wav is not there"):
        run_on(data, tmp_path / "out")
    manifest(data, *rows, name="train.jsonl")
    with pytest.raises(DataError, match=r"cannot use the row .*train\.jsonl:3, .*2\.flac"):
        run_on(data, tmp_path / "one")
    manifest(data, *rows, {"audio": "absent.wav", "text": "x"}, name="train.jsonl")
    losses = []
    for workers in (0, 2):
        done = run_on(data, tmp_path / str(workers), skip_bad=True, workers=workers, quiet=False)
        told = [
            json.loads(line)["row"] for line in (tmp_path / str(workers) / "skipped.jsonl").read_text().splitlines()
        ]
        assert [row.partition(",")[0].rpartition("/")[2] for row in told] == ["train.jsonl:7", "train.jsonl:3"]
        assert "2 rows were skipped" in capsys.readouterr().err
        losses.append(done.after)
    assert losses[0] == losses[1]


def run_on(data: Path, out: Path, **settings: Any) -> Any:
    options = {"batch": 2, "lr": 1e-3, "epochs": 2, "quiet": True, **settings}
    (done,) = finetune(load(data), data=data, out=out, **options)
    return done
