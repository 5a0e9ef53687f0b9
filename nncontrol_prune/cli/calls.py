"""`status`, `call` and `keys`: what is said to a running simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import JsonValue

from nncontrol_prune.cli.common import FAILED, Host, Json, Keys, Port, Sparsity, handled, print_json
from nncontrol_prune.pruning.settings import Method
from nncontrol_prune.transport.network import DEFAULT_PORT, LOOPBACK, Network


@handled
def status(port: Port = DEFAULT_PORT, host: Host = LOOPBACK, keys: Keys = None, as_json: Json = False) -> None:
    """Ask the processes of a running simulation how they are."""
    from nncontrol_prune import display
    from nncontrol_prune.transport.messages import Status
    from nncontrol_prune.transport.network import TransportError
    from nncontrol_prune.transport.requests import Client

    network = Network(port=port, host=host, keys=keys)
    answers: dict[str, Any] = {}
    for service in ("plant", "controller", "pruning"):
        try:
            with Client(network, service, timeout=2.0) as client:
                answers[service] = client.request(Status())
        except TransportError as error:
            answers[service] = {"error": str(error)}
    if as_json:
        print_json(answers)
    else:
        for service, answer in answers.items():
            display.out.print(service, style="bold")
            for key, value in answer.items():
                if key not in ("outcome", "events", "ticks"):
                    display.out.print(f"  {key}: {value}", soft_wrap=True)
    if all("error" in answer for answer in answers.values()):
        raise typer.Exit(FAILED)


@handled
def call(
    what: Annotated[Literal["prune", "cancel", "deploy", "rollback", "reset"], typer.Argument(help="The service.")],
    sparsity: Sparsity = None,
    method: Annotated[Method | None, typer.Option(help="Optimizer of the pruning coefficients.")] = None,
    port: Port = DEFAULT_PORT,
    host: Host = LOOPBACK,
    keys: Keys = None,
    as_json: Json = False,
) -> None:
    """Call a service of a running simulation. `prune` answers at once; `status` tells how it goes."""
    from nncontrol_prune import display
    from nncontrol_prune.controllers.specs import Spec
    from nncontrol_prune.transport import messages
    from nncontrol_prune.transport.network import Service
    from nncontrol_prune.transport.requests import Client

    settings: dict[str, JsonValue] = {}
    if sparsity is not None:
        settings["sparsity"] = sparsity
    if method is not None:
        settings["method"] = method
    if settings and what != "prune":
        raise typer.BadParameter("--sparsity and --method go with `call prune`")
    calls: dict[str, tuple[Service, Spec]] = {
        "prune": ("pruning", messages.Prune(settings=settings)),
        "cancel": ("pruning", messages.Cancel()),
        "deploy": ("pruning", messages.Deploy()),
        "rollback": ("controller", messages.Rollback()),
        "reset": ("plant", messages.Reset()),
    }
    service, request = calls[what]
    with Client(Network(port=port, host=host, keys=keys), service, timeout=15.0) as client:
        result = client.request(request)
    if as_json:
        print_json(result)
    else:
        display.out.print(", ".join(f"{key}: {value}" for key, value in result.items()) or "done", soft_wrap=True)


@handled
def make_keys(directory: Annotated[Path, typer.Argument(help="A new directory.")]) -> None:
    """Make CURVE keys, so that `status` and `call` may come from another machine."""
    from nncontrol_prune import display
    from nncontrol_prune.transport import network

    network.make_keys(directory)
    display.out.print(
        f"{directory}: copy server.key and client.key_secret, and no more, to the other machine over a safe channel; "
        "whoever has client.key_secret can command the robot",
        soft_wrap=True,
    )
