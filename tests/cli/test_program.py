"""The program as a user meets it, with a third party's port: what goes to stdout, to stderr, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import zoo as package
from zoo.hub.safetensors import write

ROOT = Path(package.__file__).resolve().parents[1]


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


# --- run --------------------------------------------------------------------------------------------------------------


def test_run_shows_what_was_chosen_then_the_result(zoo, scaler):
    code, out, err = zoo("run", "scaler", "1", "2", "--device", "numpy")
    assert code == 0 and lines(out) == ["6", "11"]
    assert lines(err)[0] == f"scaler · {scaler} (exact) · numpy f32"
    assert lines(err)[1:4] == ["scaling ...", "  looking at 1.0", "  looking at 2.0"]
    assert "peak memory" in lines(err)[-1]


def test_without_arguments_the_ports_own_defaults(zoo, scaler):
    assert zoo("run", "scaler", "--device", "numpy")[:2] == (0, "6\n")


def test_quiet_leaves_the_result_alone(zoo, scaler):
    assert zoo("run", "scaler", "1", "--quiet", "--device", "numpy") == (0, "6\n", "")


def test_json_is_one_document(zoo, scaler):
    code, out, err = zoo("run", "scaler", "1", "2", "--json", "--device", "numpy")
    assert code == 0 and err
    assert json.loads(out) == {
        "model": "scaler",
        "weights": str(scaler),
        "device": "numpy",
        "results": [{"number": 1.0, "values": [6.0]}, {"number": 2.0, "values": [11.0]}],
    }


def test_the_ports_own_options(zoo, scaler):
    assert zoo("run", "scaler", "1", "--plus", "1", "--negate", "-q", "--device", "numpy")[1] == "-11\n"


def test_seed_is_the_same_on_every_model(zoo, scaler):
    assert zoo("run", "scaler", "1", "--seed", "1", "-q", "--device", "numpy")[1] == "11\n"


def test_weights_by_file_directory_and_dtype(zoo, scaler):
    for ref in (str(scaler), str(scaler / "model.safetensors"), "scaler"):
        assert zoo("run", "scaler", "1", "--weights", ref, "-q", "--device", "numpy")[:2] == (0, "6\n")
    assert zoo("run", "scaler", "1", "--dtype", "f16", "-q", "--device", "numpy")[:2] == (0, "6\n")


def test_help_comes_from_the_signature_and_the_docstring(zoo, site, weights):
    code, out, _ = zoo("run", "scaler", "--help")
    text = " ".join(out.split())
    assert code == 0 and "Scale numbers." in text
    assert "what to scale; without any, 1 and nothing else" in text
    assert "added to each" in text and "--mode" in text
    for common in ("--weights", "--device", "--dtype", "--seed", "--json", "--quiet"):
        assert common in text
    assert "progress" not in text and "numbers:" not in text


def test_run_help_lists_every_port_even_a_broken_one(zoo, site, weights):
    code, out, _ = zoo("run", "--help")
    assert code == 0 and "Scale numbers." in out and "(not available; try it" in " ".join(out.split())


# --- errors -----------------------------------------------------------------------------------------------------------


def told(result, *, code: int = 1) -> list[str]:
    """The lines of an error: nothing on stdout, no traceback."""
    assert result[0] == code and result[1] == "" and "Traceback" not in result[2]
    return lines(result[2])


def test_an_error_is_three_lines(zoo, scaler):
    found = told(zoo("run", "scaler", "--mode", "boom", "-q", "--device", "numpy"))
    assert found == ["zoo: cannot scale this", "  it explodes", "  Try another."]


def test_debug_shows_where(zoo, scaler):
    for command in (["--debug", "run", "scaler"], ["run", "scaler", "--debug"]):
        code, _, err = zoo(*command, "--mode", "boom", "--device", "numpy")
        assert code == 1 and "Traceback" in err and "zoo: cannot scale this" in err
    assert "Traceback" not in zoo("run", "scaler", "--mode", "boom", "--device", "numpy")[2]  # it does not stick


def test_a_bug_is_called_one(zoo, scaler):
    found = told(zoo("run", "scaler", "--mode", "bug", "-q", "--device", "numpy"))
    assert (
        found[0] == "zoo: RuntimeError: unexpected" and "bug" in found[1] and "--debug" in found[2] and len(found) == 3
    )


def test_no_memory(zoo, scaler):
    assert "not enough memory" in told(zoo("run", "scaler", "--mode", "memory", "-q", "--device", "numpy"))[0]


def test_nan_is_no_json(zoo, scaler):
    found = told(zoo("run", "scaler", "--mode", "nan", "--json", "-q", "--device", "numpy"))
    assert found[0] == "zoo: the result is not a number"


def test_ctrl_c_says_what_the_port_said(zoo, scaler):
    assert told(zoo("run", "scaler", "--mode", "stop", "-q", "--device", "numpy"), code=130) == ["stopped after one"]


@pytest.mark.parametrize("verb", ["run", "finetune"])
def test_an_unknown_model_is_told_with_the_nearest(zoo, site, weights, verb):
    found = told(zoo(verb, "scalar"))
    assert found[0] == "zoo: there is no model named 'scalar'" and found[-1] == "  Did you mean scaler?"


def test_a_broken_port_fails_alone(zoo, scaler):
    assert "zoo-broken" in told(zoo("run", "broken", "x", "--anything"))[0]
    assert zoo("run", "scaler", "-q", "--device", "numpy")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights", "nowhere"], "no weights named 'nowhere'"),
        (["--weights", "scalr"], "Did you mean scaler?"),
        (["--weights", "."], "holds no model.safetensors"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
    ],
)
def test_common_mistakes(zoo, scaler, arguments, says):
    assert says in "\n".join(told(zoo("run", "scaler", *arguments)))


def test_weights_that_do_not_fit(zoo, scaler):
    write(Path("bad.safetensors"), {"factors.w": np.zeros((2, 1), np.float32), "bais": np.zeros(1, np.float32)})
    found = told(zoo("run", "scaler", "--weights", "bad.safetensors"))
    assert found[:3] == [
        "zoo: cannot use bad.safetensors: 2 tensors do not fit scaler",
        "  bias is missing (did you mean bais?)",
        "  bais has no place in the model (did you mean bias?)",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "scaler", "--nonsense"],
        ["run", "scaler", "word"],
        ["run", "scaler", "--dtype", "f99"],
        ["run", "scaler", "--mode", "other"],
        ["dance"],
        ["info"],
    ],
)
def test_a_wrong_command_line_is_2(zoo, scaler, arguments):
    code, out, err = zoo(*arguments)
    assert code == 2 and out == "" and "Usage:" in err and "Traceback" not in err


# --- finetune ---------------------------------------------------------------------------------------------------------


def test_finetune_writes_weights_that_run(zoo, scaler):
    code, out, err = zoo("finetune", "scaler", "--epochs", "3", "--lr", "1", "--device", "numpy", "--out", "made")
    assert (code, out) == (0, "wrote made\n") and lines(err)[0] == "scaler · new weights · numpy"
    assert zoo("run", "scaler", "--weights", "made", "-q", "--device", "numpy")[1] == "3\n"


def test_finetune_from_weights(zoo, scaler):
    command = [
        "finetune",
        "scaler",
        "--weights",
        "scaler",
        "--seed",
        "5",
        "--device",
        "numpy",
        "--out",
        "made",
        "--json",
    ]
    code, out, err = zoo(*command)
    assert code == 0 and json.loads(out)["results"] == [{"out": "made"}] and f"from {scaler}" in err
    assert zoo("run", "scaler", "--weights", "made", "-q", "--device", "numpy")[1] == "12\n"  # 6 + 2 epochs * 0.5 + 5


def test_finetune_help_has_usual_words_for_usual_options(zoo, site, weights):
    text = " ".join(zoo("finetune", "scaler", "--help")[1].split())
    assert (
        "passes over the data" in text and "go on from where" in text and "--weights" in text and "--dtype" not in text
    )


# --- list, info, doctor -----------------------------------------------------------------------------------------------


def test_list(zoo, scaler):
    code, out, err = zoo("list")
    assert code == 0 and err == ""
    row = next(line for line in lines(out) if line.startswith("scaler"))
    assert "multiply numbers by learned factors" in row and "scaler (" in row
    assert any(line.startswith("broken") and "cannot be imported" in line for line in lines(out))


def test_list_json(zoo, scaler):
    models = {row["name"]: row for row in json.loads(zoo("list", "--json")[1])["models"]}
    assert models["scaler"]["finetune"] and models["scaler"]["checkpoints"][0]["path"] == str(scaler)


def test_info(zoo, scaler):
    code, out, _ = zoo("info", "scaler")
    assert code == 0 and "factors.weight permute(1, 0)" in out and "exact" in out
    document = json.loads(zoo("info", "scaler", "--json")[1])
    assert document["model"] == "scaler" and document["parameters"] == 3
    assert document["tensors"][0].keys() == {"name", "shape", "dtype", "becomes", "operations"}


def test_info_of_a_damaged_pt_file_says_why(zoo, weights):
    Path("a.pt").write_bytes(b"PK\x03\x04" + bytes(60))
    assert "zip directory is missing" in told(zoo("info", "a.pt"))[1]


def test_doctor(zoo, scaler):
    assert zoo("doctor")[0] == 0
    facts = json.loads(zoo("doctor", "--json")[1])
    assert facts["zoo"].startswith(package.__version__) and facts["numpy"] and facts["model scaler"]
    assert facts["default device"] in ("numpy", "cpu")
    assert "cannot be imported" in facts["model broken"]
    assert any(str(scaler.parent) in value for name, value in facts.items() if name.startswith("weights in"))


def test_version(zoo):
    assert zoo("--version") == (0, f"zoo {package.__version__}\n", "")


# --- as a process -----------------------------------------------------------------------------------------------------


def process(*arguments: str, path: str = "", **keywords) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)]))}
    environment |= keywords.pop("env", {})
    command = [sys.executable, "-m", "zoo", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords)


def test_a_terminal_without_unicode(scaler, site):
    run = process("run", "scaler", "--device", "numpy", path=str(site), env={"PYTHONIOENCODING": "ascii"})
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0 and out == b"6\n" and b"scaler ? " in err


def test_a_reader_that_goes_away(scaler, site):
    run = process("list", path=str(site), bufsize=0)
    run.stdout.close()
    assert run.wait(60) in (0, 1) and run.stderr.read() == b""


def test_ctrl_c_is_130_without_a_traceback(tmp_path, weights, site):
    (site / "zoo_scaler.py").write_text(
        (site / "zoo_scaler.py")
        .read_text()
        .replace("    assert not model.training\n", "    import time; time.sleep(60)\n")
    )
    write(
        weights / "scaler" / "model.safetensors", {"factors.w": np.ones((2, 1), np.float32), "bias": np.ones(1, "f4")}
    )
    run = process("run", "scaler", "--device", "numpy", path=str(site))
    run.stderr.readline()  # what was chosen: it runs
    time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130 and out == b"" and err.strip() == b"stopped"


def test_help_starts_no_heavy_library():
    """`zoo --help` must answer at once."""
    heavy = {"torch", "transformers", "cupy", "huggingface_hub", "safetensors", "urllib.request", "PIL", "rich.console"}
    code = (
        f"""import sys; from zoo.cli.main import main; main(["--help"]); sys.exit({heavy!r} & set(sys.modules) or 0)"""
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_info_says_what_memory_is_needed(zoo, scaler):
    code, out, _ = zoo("info", "scaler")
    memory = json.loads(zoo("info", "scaler", "--json")[1])["memory"]
    assert code == 0 and memory["weights"]["f32"] == 12 and memory["weights"]["bf16"] == 6 and memory["beside"] == {}
    assert "12 B in f32 or 6 B in bf16" in out and "room for f32" in out


@pytest.mark.parametrize(
    ("words", "wanted"), [("zoo ru", "run"), ("zoo run lla", "llama"), ("zoo compare --ref", "--reference")]
)
def test_a_shell_completes(words: str, wanted: str) -> None:
    """What bash asks for after `zoo --install-completion`: commands, models, options."""
    asked = {"_ZOO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = "from zoo.cli.main import app; app(prog_name='zoo')"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True)
    assert wanted in done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    "name", [path.parent.name for path in (Path(__file__).parents[2] / "zoo").glob("*/__main__.py")]
)
def test_a_port_is_a_program_too(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"zoo.{name}", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and f"zoo run {name}" in done.stdout
