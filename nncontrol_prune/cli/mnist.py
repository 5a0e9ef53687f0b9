"""`mnist`: the paper's autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nncontrol_prune.cli.common import Json, check_writable, handled, print_json
from nncontrol_prune.pruning.settings import ImportanceName
from nncontrol_prune.service.mnist_report import MnistSettings

MNIST = MnistSettings()


@handled
def mnist(
    data: Annotated[Path, typer.Option(help="Directory with MNIST's IDX files, plain or as .gz.")] = Path("data/mnist"),
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("out/mnist"),
    sparsity: Annotated[
        list[float], typer.Option(help="Share of the parameters to remove; may be given several times.")
    ] = list(MNIST.sparsity),  # noqa: B006
    channel_multiple: Annotated[
        int, typer.Option(help="Groups keep a multiple of so many channels, or all.", min=1)
    ] = MNIST.channel_multiple,
    method: Annotated[
        list[str], typer.Option(help="Optimizer of the coefficients; may be given several times.")
    ] = list(MNIST.method),  # noqa: B006
    importance: Annotated[ImportanceName, typer.Option(help="Which channels leave first.")] = MNIST.importance,
    distill_steps: Annotated[
        int, typer.Option(help="Gradient steps on the pruned autoencoders; scored without them too.")
    ] = MNIST.distill_steps,
    epochs: Annotated[int, typer.Option(help="Passes of the training over the images.")] = MNIST.epochs,
    seed: Annotated[int, typer.Option(help="Of training and pruning.")] = MNIST.seed,
    as_json: Json = False,
) -> None:
    """Train an autoencoder of MNIST, prune it with every method, and show what is left of the images.

    The dense autoencoder is kept in OUT and used again as long as nothing about its training changes.
    """
    from nncontrol_prune import display
    from nncontrol_prune.config import ConfigError, validated
    from nncontrol_prune.progress import Progress
    from nncontrol_prune.service.mnist import run_mnist

    values = {
        "sparsity": sparsity,
        "channel_multiple": channel_multiple,
        "method": method,
        "importance": importance,
        "distill_steps": distill_steps,
        "epochs": epochs,
        "seed": seed,
    }
    settings = validated(MnistSettings, values, "mnist")
    if not data.is_dir():
        raise ConfigError(f"mnist: --data {data} is not a directory; name the one that holds MNIST's IDX files")
    check_writable(out)
    with display.progress_bar(as_json) as show:
        report, written = run_mnist(data, out, settings, Progress(show))
    if as_json:
        print_json({**report.model_dump(mode="json"), "written": [str(path) for path in written]})
        return
    display.out.print(display.mnist_table(report))
    for note in report.notes:
        display.note(note)
    display.out.print(display.written(written), soft_wrap=True)
