"""The command line, `nncontrol-prune`.

Exit codes: 0 done, 1 failed, 2 usage (an argument or configuration is wrong), 3 rejected by the gate; 130 when
interrupted. With `--json`, standard output is exactly one JSON object.
"""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer
from pydantic import JsonValue

from nncontrol_prune.controllers.specs import Activation
from nncontrol_prune.pruning.settings import CostName, ImportanceName, Method, PruningSettings
from nncontrol_prune.service.mnist_report import MnistSettings
from nncontrol_prune.transport.network import DEFAULT_PORT, LOOPBACK, Network
from nncontrol_prune.validation.settings import GateSettings

if TYPE_CHECKING:
    from nncontrol_prune.controllers.bundle import Bundle

FAILED, USAGE, REJECTED, INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    help="Prune neural-network controllers from a live loop's rollouts, and swap them in without missing a tick.\n\n"
    "Exit codes: 0 done, 1 failed, 2 usage, 3 rejected by the gate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
importer = typer.Typer(help="Import controllers from other libraries.", no_args_is_help=True)
app.add_typer(importer, name="import")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Env = Annotated[str | None, typer.Option(help="Gymnasium MuJoCo id; default: what the controller was made for.")]
Store = Annotated[Path, typer.Option(help="The bundle store.", envvar="NNCONTROL_PRUNE_STORE")]
Port = Annotated[int, typer.Option(min=1024, max=65530, help="First of five consecutive TCP ports.")]
Host = Annotated[str, typer.Option(help="Address; anything but loopback needs --keys.")]
Keys = Annotated[Path | None, typer.Option(help="Directory with CURVE keys, made by `nncontrol-prune keys`.")]
Sparsity = Annotated[float | None, typer.Option(help="Share of the parameters to remove, in [0, 1).")]
DEFAULT_STORE = Path("out/store")
PRUNING = PruningSettings()
GATE = GateSettings()
MNIST = MnistSettings()

Command = TypeVar("Command", bound=Callable[..., None])


def _handled(command: Command) -> Command:
    """Turn every expected error into one sentence and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from nncontrol_prune.config import ConfigError

        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _fail("interrupted", INTERRUPTED, kwargs)
        except ConfigError as error:
            _fail(str(error), USAGE, kwargs)
        except Exception as error:
            # Ours are sentences for the user; anything else is a fault that deserves its traceback.
            if type(error).__module__.startswith("nncontrol_prune."):
                _fail(str(error), FAILED, kwargs)
            if isinstance(error, (FileExistsError, PermissionError)):
                _fail(str(error), FAILED, kwargs)
            raise

    return run  # type: ignore[return-value]


def _fail(message: str, code: int, options: dict[str, Any]) -> NoReturn:
    if options.get("as_json"):
        print(json.dumps({"error": message, "exit_code": code}))
    print(f"nncontrol-prune: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(_without_nan(value), default=str, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@app.command()
@_handled
def sim(
    env: Annotated[str | None, typer.Option(help="Gymnasium MuJoCo id, such as Hopper-v5.")] = None,
    controller: Annotated[str | None, typer.Option(help="Shipped name, directory or name@digest.")] = None,
    rate: Annotated[float | None, typer.Option(help="Control rate in Hz; must be the environment's.")] = None,
    duration: Annotated[float, typer.Option(min=0, help="Seconds; 0 to run until Ctrl-C.")] = 60.0,
    record: Annotated[
        bool | None,
        typer.Option("--record/--no-record", help="Record rollouts below OUT/bags; without, nothing is pruned."),
    ] = None,
    sparsity: Sparsity = None,
    method: Annotated[Method | None, typer.Option(help="Optimizer of the pruning coefficients.")] = None,
    prune_after: Annotated[
        float, typer.Option(help="Seconds after which pruning starts; negative to leave it to `call prune`.")
    ] = 25.0,
    headless: Annotated[bool | None, typer.Option("--headless/--viewer", help="Whether to open a window.")] = None,
    real_time_factor: Annotated[float | None, typer.Option(help="Plant seconds per second.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the plant's first episode.")] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration file; default config/sim.yaml.")] = None,
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("out"),
    store: Annotated[
        Path | None, typer.Option(help="The bundle store; default OUT/store.", envvar="NNCONTROL_PRUNE_STORE")
    ] = None,
    port: Port = DEFAULT_PORT,
    host: Host = LOOPBACK,
    keys: Keys = None,
    as_json: Json = False,
) -> None:
    """Run plant, control loop and pruning service; prune, validate and swap while the loop runs."""
    from nncontrol_prune import display
    from nncontrol_prune.config import load_config
    from nncontrol_prune.plots import plot_run
    from nncontrol_prune.rollouts.reader import read_rollouts
    from nncontrol_prune.runtime.store import BundleStore
    from nncontrol_prune.service.report_files import PAGE
    from nncontrol_prune.transport.session import export_bundles, run_session
    from nncontrol_prune.transport.simulation import Simulation

    setup = load_config(config)
    setup = setup.override("mujoco_sim", env=env, headless=headless, real_time_factor=real_time_factor, seed=seed)
    setup = setup.override("nn_controller", controller=controller, rate=rate, record=record)
    setup = setup.override("pruning_service", sparsity=sparsity, method=method)
    bag = out / "bags" / f"{datetime.now(timezone.utc):%Y-%m-%dT%H-%M-%S}" if setup.nn_controller.record else None
    bundles = BundleStore(store or out / "store")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end like Ctrl-C, so that nothing is left behind
    simulation = Simulation(setup, Network(port=port, host=host, keys=keys), out=out, store=bundles, bag=bag)
    with simulation, display.progress_bar(as_json) as tell:
        result, ticks = run_session(
            simulation,
            duration=duration or None,
            prune_after=prune_after if prune_after >= 0 and bag is not None else None,
            tell=tell,
        )
    written = export_bundles(bundles, result, out / "bundles")
    if bag is not None:
        picture = out / "run.png"
        plot_run(
            picture,
            setup.mujoco_sim.env,
            read_rollouts(bag),
            simulation.dense.manifest.action,
            ticks,
            result.active_by_swap,
            setup.mujoco_sim.real_time_factor,
        )
        written += [bag, picture]
    if result.job.outcome is not None:
        written.append(result.job.outcome.report / PAGE)
    if as_json:
        _print_json({**result.model_dump(mode="json"), "written": [str(path) for path in written]})
    else:
        display.out.print(display.session_table(result))
        for note in result.notes:
            display.err.print(f"[yellow]note:[/] {note}")
        display.out.print(display.written(written), soft_wrap=True)
    if result.job.state == "rejected":
        raise typer.Exit(REJECTED)
    if result.job.state == "failed" or result.notes:
        raise typer.Exit(FAILED)


@app.command()
@_handled
def rollout(
    controller: Annotated[str, typer.Argument(help="Shipped name, directory or name@digest.")],
    out: Annotated[Path, typer.Option(help="The bag to write; a new directory.")],
    env: Env = None,
    episodes: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode; the next ones follow.")] = 0,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Run episodes as fast as possible and write them to a bag."""
    from nncontrol_prune import display
    from nncontrol_prune.runtime.finding import find_bundle
    from nncontrol_prune.runtime.store import BundleStore
    from nncontrol_prune.service.rollouts import record_episodes
    from nncontrol_prune.validation.evaluation import summarize

    bundle = find_bundle(BundleStore(store), controller)
    with display.progress_bar(as_json) as show:
        done = record_episodes(
            bundle,
            _environment(bundle, env),
            range(seed, seed + episodes),
            out,
            lambda share: show(f"{episodes} episodes", share),
        )
    summary = summarize(bundle, done)
    if as_json:
        _print_json({"bag": str(out), **summary.model_dump()})
    else:
        display.out.print(
            f"{out}: {sum(episode.steps for episode in done):,} transitions in {episodes} episodes; "
            f"success {summary.successes} of {episodes}, return {summary.return_mean:.1f} ± {summary.return_std:.1f}",
            soft_wrap=True,
        )


@app.command()
@_handled
def prune(
    controller: Annotated[str, typer.Argument(help="Shipped name, directory or name@digest.")],
    rollouts: Annotated[list[Path], typer.Option(help="Bag to prune from; may be given several times.")],
    out: Annotated[Path, typer.Option(help="The bundle to write; a new directory.")],
    env: Annotated[
        str | None, typer.Option(help="Gymnasium MuJoCo id; candidates are then compared in closed loop.")
    ] = None,
    sparsity: Annotated[
        str, typer.Option(help="Share to remove, in [0, 1); `auto` for the largest that passes validation.")
    ] = "0.7",
    tolerance: Annotated[float, typer.Option(help="How far the sparsity may be off.")] = PRUNING.tolerance,
    cost: Annotated[CostName, typer.Option(help="What the sparsity is a share of.")] = PRUNING.cost,
    method: Annotated[Method, typer.Option(help="Optimizer of the pruning coefficients.")] = PRUNING.method,
    importance: Annotated[ImportanceName, typer.Option(help="Which channels leave first.")] = PRUNING.importance,
    term: Annotated[
        list[str] | None,
        typer.Option(help="NAME=WEIGHT of what matters, such as action=1; may be given several times."),
    ] = None,
    limit: Annotated[list[str] | None, typer.Option(help="NAME=LARGEST mean error of a term that is allowed.")] = None,
    component_weight: Annotated[
        list[str] | None, typer.Option(help="NAME=WEIGHT of a component, for the method threshold.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Prune gradually, in so many rounds.")] = PRUNING.rounds,
    distill_steps: Annotated[int, typer.Option(min=0, help="Gradient steps of distillation.")] = PRUNING.distill_steps,
    on_policy_rounds: Annotated[
        int | None,
        typer.Option(help="Rounds with states that the pruned controller meets in --env; by default 3 where possible."),
    ] = PRUNING.on_policy_rounds,
    perturbation: Annotated[
        float, typer.Option(help="Noise on a second copy of the rollouts, in standard deviations.")
    ] = PRUNING.perturbation,
    max_rows: Annotated[int, typer.Option(help="Transitions that are used at the most.")] = PRUNING.max_rows,
    jobs: Annotated[int, typer.Option(min=1, help="Choices that the grid judges at the same time.")] = PRUNING.jobs,
    seed: Annotated[int, typer.Option(min=0)] = PRUNING.seed,
    name: Annotated[str | None, typer.Option(help="Name of the new controller.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Make a controller smaller from its rollouts. It cannot be run before `validate` has accepted it.

    With `--sparsity auto` the sparsities tried are validated as they come, and the verdict about the result is kept
    in the store.
    """
    from nncontrol_prune import display
    from nncontrol_prune.config import ConfigError, validated
    from nncontrol_prune.progress import Progress
    from nncontrol_prune.runtime.finding import find_bundle
    from nncontrol_prune.runtime.store import BundleStore
    from nncontrol_prune.service import work
    from nncontrol_prune.service.boundary import prune_to_boundary
    from nncontrol_prune.validation.evaluation import check_environment

    values: dict[str, Any] = {
        "tolerance": tolerance,
        "cost": cost,
        "method": method,
        "importance": importance,
        "terms": _named_numbers(term, "--term") or None,
        "limits": _named_numbers(limit, "--limit"),
        "component_weights": _named_numbers(component_weight, "--component-weight"),
        "rounds": rounds,
        "distill_steps": distill_steps,
        "on_policy_rounds": on_policy_rounds,
        "perturbation": perturbation,
        "max_rows": max_rows,
        "jobs": jobs,
        "seed": seed,
    }
    auto = sparsity == "auto"
    if not auto:
        values["sparsity"] = _number(sparsity, "prune: --sparsity has to be a number or `auto`")
    settings = validated(PruningSettings, values, "prune")
    _check_new(out)
    bundles = BundleStore(store)
    dense = find_bundle(bundles, controller)
    if auto:
        env = _environment(dense, env)
        if cost != "parameters":
            raise ConfigError("prune: --sparsity auto goes by parameters; leave --cost out")
    if env is not None:
        check_environment(dense.manifest, env)
    curve = None
    with display.progress_bar(as_json) as show:
        data = work.read(dense, tuple(rollouts), Progress(show))
        if auto:
            found = prune_to_boundary(
                dense,
                data,
                settings,
                environment=str(env),
                gate=GATE,
                cache=work.episode_cache(bundles),
                progress=Progress(show),
                name=name,
            )
            bundle, report, curve = found.candidate, found.report, found.curve
            bundles.add(dense)
            bundles.add(bundle)
            bundles.write_verdict(found.verdict)
        else:
            bundle, report = work.prune(dense, data, settings, environment=env, name=name, progress=Progress(show))
    bundle.write(out)
    if as_json:
        summary = {"bundle": str(out), "reference": bundle.reference, **report.model_dump(mode="json")}
        if curve is not None:
            summary["curve"] = [point.model_dump(mode="json") for point in curve]
        _print_json(summary)
        return
    groups = [group.model_dump() for group in report.groups]
    display.out.print(display.groups_table(groups, f"{report.sparsity:.1%} of the {report.cost} removed"))
    if curve is not None:
        display.out.print(display.boundary_table(curve))
    errors = ", ".join(f"{name} {error:.2e}" for name, error in report.errors.items())
    display.out.print(f"held-out error: {errors}; chosen: {report.chosen}")
    for warning in report.warnings:
        display.err.print(f"[yellow]note:[/] {warning}")
    display.out.print(
        f"{out}: {report.pruned_parameters:,} of {report.dense_parameters:,} parameters left."
        + (" It is accepted." if auto else f" Next: nncontrol-prune validate {out} --against {controller}")
        + (f" --env {env}" if env and not auto else ""),
        soft_wrap=True,
    )


def _named_numbers(given: list[str] | None, option: str) -> dict[str, float]:
    """Parse NAME=NUMBER options."""
    pairs = [text.partition("=") for text in given or ()]
    return {name: _number(number, f"{option} has to be NAME=NUMBER, such as action=1") for name, _, number in pairs}


def _number(text: str, otherwise: str) -> float:
    from nncontrol_prune.config import ConfigError

    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{otherwise}, not {text!r}") from None


def _gate_option(name: str, text: str) -> Any:
    """Return an option that takes the place of what a configuration, or else the default, says."""
    return typer.Option(help=text, show_default=f"{getattr(GATE, name):g}")


@app.command()
@_handled
def validate(
    candidate: Annotated[str, typer.Argument(help="The pruned controller: directory or name@digest.")],
    against: Annotated[str, typer.Option(help="The dense controller: shipped name, directory or name@digest.")],
    env: Env = None,
    rollouts: Annotated[
        list[Path] | None,
        typer.Option(help="Instead of a closed loop: bag it was not pruned from; may be given again."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration file; its section pruning_service gives what no option does.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Directory for the report; default: in the store.")] = None,
    max_episodes: Annotated[
        int | None, _gate_option("max_episodes", "Pairs of episodes after which it is inconclusive.")
    ] = None,
    min_episodes: Annotated[int | None, _gate_option("min_episodes", "Pairs before it may be accepted.")] = None,
    success_margin: Annotated[
        float | None, _gate_option("success_margin", "How much less likely it may succeed than the dense one.")
    ] = None,
    return_ratio: Annotated[
        float | None, _gate_option("return_ratio", "Smallest share of the dense return to keep.")
    ] = None,
    action_rate_ratio: Annotated[
        float | None, _gate_option("action_rate_ratio", "How much faster its commands may change.")
    ] = None,
    latency_share: Annotated[
        float | None,
        _gate_option("latency_share", "Largest share of the control period that an action (p99) may take here."),
    ] = None,
    margin_share: Annotated[
        float | None, _gate_option("margin_share", "Smallest share of the dense one's delay and gain margins to keep.")
    ] = None,
    robustness: Annotated[
        bool, typer.Option(help="Whether to try pushes, noise, more delay, other masses, friction and starts too.")
    ] = True,
    delay: Annotated[int | None, _gate_option("delay", "Ticks that a command takes to the plant.")] = None,
    jobs: Annotated[int | None, _gate_option("jobs", "Workers; the verdict does not depend on it.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Judge a pruned controller in closed loop. The verdict is kept in the store; without acceptance, exit code 3.

    Where there is no simulator, --rollouts compares it with the dense one on logged states alone. That says much less:
    the loop runs it only if its setting allow_offline is true.
    """
    from nncontrol_prune import display
    from nncontrol_prune.config import ConfigError, load_config, validated
    from nncontrol_prune.progress import Progress
    from nncontrol_prune.runtime.finding import stored_bundle
    from nncontrol_prune.runtime.store import BundleStore
    from nncontrol_prune.service import work
    from nncontrol_prune.service.report_files import PAGE

    if rollouts and env is not None:
        raise ConfigError("validate: --env is for a closed loop and --rollouts for where there is none; leave one out")
    options = {
        "min_episodes": min_episodes,
        "max_episodes": max_episodes,
        "success_margin": success_margin,
        "return_ratio": return_ratio,
        "action_rate_ratio": action_rate_ratio,
        "latency_share": latency_share,
        "margin_share": margin_share,
        "delay": delay,
        "jobs": jobs,
    }
    values = GATE.model_dump() if config is None else load_config(config).pruning_service.gate.model_dump()
    values.update((name, value) for name, value in options.items() if value is not None)
    if not robustness:
        values["robustness"]["enabled"], values["attraction_starts"] = False, 0
    gate = validated(GateSettings, values, "validate")
    bundles = BundleStore(store)
    pruned, dense = stored_bundle(bundles, candidate), stored_bundle(bundles, against)
    with display.progress_bar(as_json) as show:
        where = work.read(dense, tuple(rollouts), Progress(show)) if rollouts else _environment(dense, env)
        outcome = work.validate(pruned, dense, bundles, where, gate, Progress(show), directory=report)
    verdict = outcome.verdict
    if as_json:
        _print_json({**verdict.model_dump(mode="json"), "report": str(outcome.report)})
    else:
        display.out.print(display.verdict_table(verdict))
        if verdict.robustness:
            display.out.print(display.robustness_table(verdict))
        display.out.print(f"{outcome.report / PAGE}", soft_wrap=True)
    if not verdict.accepted:
        raise typer.Exit(REJECTED)


@importer.command("sb3")
@_handled
def import_sb3(
    file: Annotated[Path, typer.Argument(help="Zip written by Stable-Baselines3 (PPO, SAC or TD3).")],
    env: Annotated[str, typer.Option(help="The environment it was trained for.")],
    out: Annotated[Path, typer.Option(help="The bundle to write; a new directory.")],
    vecnormalize: Annotated[Path | None, typer.Option(help="VecNormalize statistics saved beside it.")] = None,
    activation: Annotated[Activation | None, typer.Option(help="Needed only if the file does not say.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the controller; default: the file's.")] = None,
    as_json: Json = False,
) -> None:
    """Import a Stable-Baselines3 zip. Nothing in the file is executed."""
    from nncontrol_prune.service.imports import bundle_from_sb3

    _check_new(out)
    bundle = bundle_from_sb3(file, env, name=name, vecnormalize=vecnormalize, activation=activation)
    _write_imported(bundle, out, as_json)


@importer.command("tdmpc2")
@_handled
def import_tdmpc2(
    file: Annotated[Path, typer.Argument(help="Checkpoint of one task with state observations.")],
    env: Annotated[str, typer.Option(help="The environment it was trained for.")],
    out: Annotated[Path, typer.Option(help="The bundle to write; a new directory.")],
    name: Annotated[str | None, typer.Option(help="Name of the controller; default: the file's.")] = None,
    horizon: Annotated[int | None, typer.Option(help="Steps planned ahead; official: 3.")] = None,
    samples: Annotated[int | None, typer.Option(help="Sequences drawn around the plan; official: 488.")] = None,
    policy_samples: Annotated[int | None, typer.Option(help="Sequences the policy proposes; official: 24.")] = None,
    elites: Annotated[int | None, typer.Option(help="Sequences that make the next plan; official: 64.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Official: 6, with 20 actions and more 8.")] = None,
    temperature: Annotated[float | None, typer.Option(help="How much better elites count more; official: 0.5.")] = None,
    min_std: Annotated[float | None, typer.Option(help="Least spread of the sequences; official: 0.05.")] = None,
    max_std: Annotated[float | None, typer.Option(help="Spread at first; official: 2.")] = None,
    discount: Annotated[float | None, typer.Option(help="Of the rewards; default: 0.99.")] = None,
    episode_length: Annotated[
        int | None, typer.Option(min=1, help="Steps of a training episode, which the official discount follows from.")
    ] = None,
    simplex: Annotated[int, typer.Option(help="Its `simnorm_dim`.")] = 8,
    v_min: Annotated[float, typer.Option(help="Its `vmin`.")] = -10.0,
    v_max: Annotated[float, typer.Option(help="Its `vmax`.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Import a checkpoint of the official TD-MPC2 code. Nothing in the file is executed."""
    from nncontrol_prune import display
    from nncontrol_prune.config import ConfigError
    from nncontrol_prune.controllers.tdmpc2 import official_discount
    from nncontrol_prune.service.imports import bundle_from_tdmpc2

    _check_new(out)
    planner = {
        "horizon": horizon,
        "samples": samples,
        "policy_samples": policy_samples,
        "elites": elites,
        "iterations": iterations,
        "temperature": temperature,
        "min_std": min_std,
        "max_std": max_std,
    }
    if discount is not None and episode_length is not None:
        raise ConfigError("import tdmpc2: the discount follows from --episode-length; leave --discount or it out")
    if discount is None:
        discount = 0.99 if episode_length is None else official_discount(episode_length)
    bundle = bundle_from_tdmpc2(
        file,
        env,
        name=name,
        planner={key: value for key, value in planner.items() if value is not None},
        simplex=simplex,
        v_min=v_min,
        v_max=v_max,
        discount=discount,
        note=lambda sentence: display.err.print(f"[yellow]note:[/] {sentence}"),
    )
    _write_imported(bundle, out, as_json)


def _write_imported(bundle: Bundle, out: Path, as_json: bool) -> None:
    from nncontrol_prune import display

    bundle.write(out)
    if as_json:
        _print_json({"bundle": str(out), "reference": bundle.reference, **bundle.manifest.model_dump(mode="json")})
    else:
        display.out.print(display.bundle_table(bundle))
        display.out.print(str(out))


@app.command()
@_handled
def inspect(
    what: Annotated[str, typer.Argument(help="A bundle (directory, name@digest, shipped name) or a bag.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show what is in a bundle, with its prunable groups, or in a bag."""
    from nncontrol_prune import display
    from nncontrol_prune.runtime.finding import find_bundle
    from nncontrol_prune.runtime.store import BundleStore
    from nncontrol_prune.service import inspection

    path = Path(what)
    if path.exists() and not (path / "manifest.json").exists():
        summary = inspection.inspect_rollouts(path)
        if as_json:
            _print_json(summary)
        else:
            for key, value in summary.items():
                display.out.print(f"{key}: {value}", soft_wrap=True)
        return
    bundle = find_bundle(BundleStore(store), what)
    groups = inspection.inspect_groups(bundle)
    if as_json:
        manifest = bundle.manifest.model_dump(mode="json")
        _print_json({"reference": bundle.reference, **manifest, "groups": groups})
    else:
        display.out.print(display.bundle_table(bundle))
        display.out.print(display.groups_table(groups))


@app.command()
@_handled
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
        _print_json(answers)
    else:
        for service, answer in answers.items():
            display.out.print(f"[bold]{service}[/]")
            for key, value in answer.items():
                if key not in ("outcome", "events", "ticks"):
                    display.out.print(f"  {key}: {value}", soft_wrap=True, markup=False)
    if all("error" in answer for answer in answers.values()):
        raise typer.Exit(FAILED)


@app.command()
@_handled
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
        _print_json(result)
    else:
        display.out.print(", ".join(f"{key}: {value}" for key, value in result.items()) or "done", soft_wrap=True)


@app.command()
@_handled
def mnist(
    data: Annotated[Path, typer.Option(help="Directory with MNIST's IDX files, plain or as .gz.")] = Path("data/mnist"),
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("out/mnist"),
    sparsity: Annotated[
        list[float], typer.Option(help="Share of the parameters to remove; may be given several times.")
    ] = list(MNIST.sparsity),  # noqa: B006
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
        "method": method,
        "importance": importance,
        "distill_steps": distill_steps,
        "epochs": epochs,
        "seed": seed,
    }
    settings = validated(MnistSettings, values, "mnist")
    if not data.is_dir():
        raise ConfigError(f"mnist: --data {data} is not a directory; name the one that holds MNIST's IDX files")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"mnist: --out {out} cannot be made a directory: {error.strerror}") from error
    with display.progress_bar(as_json) as show:
        report, written = run_mnist(data, out, settings, Progress(show))
    if as_json:
        _print_json({**report.model_dump(mode="json"), "written": [str(path) for path in written]})
        return
    display.out.print(display.mnist_table(report))
    for note in report.notes:
        display.err.print(f"[yellow]note:[/] {note}")
    display.out.print(display.written(written), soft_wrap=True)


@app.command("keys")
@_handled
def make_keys(directory: Annotated[Path, typer.Argument(help="A new directory.")]) -> None:
    """Make CURVE keys, so that the processes may run on several machines."""
    from nncontrol_prune import display
    from nncontrol_prune.transport import network

    network.make_keys(directory)
    display.out.print(
        f"{directory}: copy it to the other machine over a safe channel; whoever has it can command the robot",
        soft_wrap=True,
    )


def _environment(bundle: Bundle, asked: str | None) -> str:
    """Return the environment asked for, or else the one the controller was made for."""
    from nncontrol_prune.config import ConfigError

    environment = asked or bundle.manifest.environment
    if environment is None:
        raise ConfigError(f"{bundle.manifest.name} does not say which environment it was made for; give one with --env")
    return environment


def _check_new(path: Path) -> None:
    """Refuse to overwrite before the work is done, not after."""
    if path.exists():
        raise FileExistsError(f"{path} exists already; remove it or name another")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # All is cleaned up by now; taking down the interpreter with all its libraries can take another second.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
