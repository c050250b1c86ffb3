"""The program `zoo`: its commands, and what happens when one fails.

Exit codes: 0; 1 for an error, told in three lines on stderr (`--debug` shows the traceback); 2 for a wrong command
line; 130 after Ctrl-C, and of training 143 after SIGTERM and 129 when the terminal closes (zoo/train/stopping.py).
Nothing heavy is imported here: `zoo --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

import zoo
from zoo.cli import settings
from zoo.cli.common import Interrupted, interruptible
from zoo.cli.eval import EvalGroup
from zoo.cli.finetune import FinetuneGroup
from zoo.cli.run import RunGroup
from zoo.core.errors import ZooError


def _examples(*lines: str) -> str:
    """Commands below a help, each on a line of its own (\\b keeps a paragraph as it is)."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    name="zoo", rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False,
    epilog=_examples("zoo run mnist_cnn digit.png", "zoo run llama 'Once upon a time'", "zoo pull openai/whisper-base",
                     "zoo run whisper talk.flac --weights openai/whisper-base", "zoo finetune resnet --data pictures/"),
)  # fmt: skip
app.add_typer(typer.Typer(cls=RunGroup, no_args_is_help=True), name="run", help="Run a model.")
app.add_typer(
    typer.Typer(cls=FinetuneGroup, no_args_is_help=True), name="finetune", help="Train a model on your own data."
)
app.add_typer(typer.Typer(cls=EvalGroup, no_args_is_help=True), name="eval", help="Measure a model on labelled data.")

AsJson = Annotated[bool, typer.Option("--json", help="one JSON document", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error", callback=settings.set_debug,
                                     is_eager=True, show_default=False)]  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        print(f"zoo {zoo.__version__}")
        raise typer.Exit


@app.callback()
def _zoo(
    version: Annotated[
        bool, typer.Option("--version", help="show the version", callback=_version, is_eager=True, show_default=False)
    ] = False,
    debug: Debug = False,
) -> None:
    """LLaMA, Stable Diffusion, Whisper, ResNet and a MNIST CNN on one small tensor core."""


@app.command("list")
def _list(as_json: AsJson = False, debug: Debug = False) -> None:
    """Which models there are, and which checkpoints are here."""
    from zoo.cli.list import list_models

    list_models(as_json)


@app.command("info", epilog=_examples("zoo info llama", "zoo info runs/mine --tokens 2048"))
def _info(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="a checkpoint's name, directory or file", show_default=False)
    ],
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="a text's length, for the memory; without it, the model's limit", show_default=False),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """What a checkpoint is: model, config, card, the memory it needs, every tensor."""
    from zoo.cli.info import info

    info(ref, tokens, as_json)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="the result only: nothing on stderr", show_default=False)]


@app.command(
    "pull",
    epilog=_examples(
        "zoo pull openai/whisper-base --check", "zoo pull HuggingFaceTB/SmolLM2-135M-Instruct --dtype int8"
    ),
)
@interruptible
def _pull(
    ref: Annotated[str, typer.Argument(metavar="REF", help="a repository: owner/name[@revision]", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit", show_default=False)] = None,
    check: Annotated[
        bool, typer.Option("--check", help="read headers only: say what would be fetched, and what does not fit")
    ] = False,
    dtype: Annotated[
        Literal["f32", "f16", "bf16", "int8", "int4"] | None,
        typer.Option(
            help="in which weights are kept (int8, int4: of linear layers and convolutions); without it, as published",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch weights from the Hugging Face Hub, check them, translate them, keep them."""
    from zoo.cli import pull

    (pull.check if check else pull.pull)(ref, revision, dtype, as_json, quiet)


@app.command("export", epilog=_examples("zoo export runs/mine published", "zoo export runs/adapter merged --merge"))
@interruptible
def _export(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="a checkpoint's name, directory or file", show_default=False)
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a new directory", show_default=False)],
    merge: Annotated[
        bool, typer.Option("--merge", help="of an adapter: its base, with the change in its weights")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a checkpoint in the published layout, for other programs."""
    from zoo.cli.pull import export

    export(ref, directory, merge, as_json, quiet)


@app.command("report")
def _report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="directories of runs", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="without it, report.html in the run's directory", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw a training run, or several side by side: one HTML file, also while it trains."""
    from zoo.cli.report import report

    report(runs, out)


@app.command("rm")
def _rm(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="a repository that was pulled: owner/name", show_default=False)
    ],
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Remove weights that were pulled."""
    from zoo.cli.pull import remove

    remove(ref, quiet)


@app.command(
    "new",
    epilog=_examples(
        "zoo new bert --from tiny-bert/", "zoo new bert --from google-bert/bert-base-uncased --out my_ports"
    ),
)
@interruptible
def _new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the port: a-z, 0-9, _", show_default=False)],
    ref: Annotated[
        str,
        typer.Option(
            "--from", metavar="REF", help="a checkpoint's directory or file, a config.json, or owner/name of the Hub"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="where NAME/ is made; without it, the checkout's zoo/, else here", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Start a port: write its folder from the config and the tensors' names and shapes of a checkpoint."""
    from zoo.cli.new import new

    new(name, ref, out, as_json, quiet)


@app.command(
    "compare",
    epilog=_examples("zoo compare llama --reference tiny-llama/", "zoo compare llama --device numpy --device cpu"),
)
@interruptible
def _compare(
    what: Annotated[
        str, typer.Argument(metavar="NAME", help="a port, or the path of a port's folder", show_default=False)
    ],
    reference: Annotated[
        str | None,
        typer.Option(metavar="REF", help="a checkpoint, which ours and the reference both load", show_default=False),
    ] = None,
    activations: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="of the reference, stored: then no torch is needed", show_default=False),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="FILE", help="keep the reference's activations: .npz", show_default=False)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="REF", help="with two devices: the weights; without it, those that ship", show_default=False
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="ours runs on it; twice: one against the other", show_default=False),
    ] = None,
    dtype: Annotated[
        Literal["f32", "f16", "bf16", "int8", "int4"] | None, typer.Option(help="of our weights", show_default=False)
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="the largest difference, by the largest value; without it, what fits the dtype", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a port and its reference module by module: the first that differs, and why."""
    from zoo.cli.compare import compare

    compare(what, reference, activations, store, weights, device or [], dtype, tolerance, as_json, quiet)


@app.command(
    "bench", epilog=_examples("zoo bench roof", "zoo bench kernels --only int8 --peers", "zoo bench resnet --peers")
)
@interruptible
def _bench(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="roof, kernels, or a model", show_default=False)],
    only: Annotated[
        str | None, typer.Option(metavar="TEXT", help="cases with this in their name", show_default=False)
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="measure the peers too, taking turns with ours")] = False,
    seconds: Annotated[float, typer.Option(min=0, help="for each case, once its candidates are built")] = 4.0,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:N")] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="of each candidate; without it, one per core", show_default=False),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="keep the JSON document there; what it holds is not measured again", show_default=False
        ),
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="draw the ratios: an SVG picture", show_default=False)
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="show the cases, and measure nothing")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="tables for a page")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure this machine, the kernels, or a model, against the roof and the peers."""
    from zoo.cli import bench

    if listed:
        bench.list_cases(what, only, device, as_json)
    elif what == "roof":
        bench.roof(device, threads, as_json)
    else:
        bench.bench(
            what, device=device, only=only, peers=peers, seconds=seconds, threads=threads, save=save, chart_file=chart,
            as_json=as_json, as_markdown=as_markdown, quiet=quiet,
        )  # fmt: skip


@app.command("doctor")
def _doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """What this installation can use, and what it lacks."""
    from zoo.cli.doctor import doctor

    doctor(as_json)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program on `arguments` (None: those of the process); returns the exit code."""
    settings.debug = False
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows no `·` gets a `?`, not a crash
            stream.reconfigure(errors="replace")
    try:
        code = app(args=arguments, prog_name="zoo", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BrokenPipeError:  # `zoo list | head -1`: who reads us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, Interrupted, typer.Abort) as stop:
        print(f"\n{stop}" if str(stop) else "\nstopped", file=sys.stderr)
        return 130
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    """Tells an error; returns its exit code."""
    if hasattr(error, "exit_code") and hasattr(error, "show"):  # typer's usage errors, whichever click it brings
        error.show()
        return int(error.exit_code)
    if settings.debug:
        traceback.print_exception(error)
    if isinstance(error, ZooError):
        told = error
    elif isinstance(error, MemoryError):
        told = ZooError(
            "there is not enough memory", str(error), "Close other programs, or use a smaller model or input."
        )
    else:
        told = ZooError(
            f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
            "this is a bug in the zoo, not a mistake of yours",
            "Run the same command as `zoo --debug ...` to see where, and report it with what that prints.",
        )
    print(f"zoo: {told}", file=sys.stderr)
    return 1
