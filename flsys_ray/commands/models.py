"""`flsys models`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flsys_ray.commands import prune
from flsys_ray.commands.options import (
    AppKey,
    AsJson,
    Url,
    console,
    developer,
    print_json,
    print_table,
    split_names,
    text_of,
)
from flsys_ray.commands.shared_sets import ExamplesPerClass, HeldOut, Seed, Source, Users, shared_set
from flsys_ray.core.plan import TrainingPlan, parse_plan, parse_plan_yaml
from flsys_ray.developer import Action
from flsys_ray.errors import InvalidInput
from flsys_ray.wire.developer_schemas import Metrics, ModelInfo, RoundInfo

group = typer.Typer(no_args_is_help=True, help="Models: what is trained, and how.")
group.command()(prune.prune)
PlanFile = Annotated[Path | None, typer.Option("--plan", exists=True, dir_okay=False, help="A training plan, YAML.")]


@group.command()
def create(
    name: str,
    plan: PlanFile = None,
    builtin: Annotated[str | None, typer.Option(help="A model that comes with the platform: har-wild.")] = None,
    program: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A program file.")] = None,
    classes: Annotated[str | None, typer.Option(help="Classes of a built-in model, with commas.")] = None,
    draft: Annotated[bool, typer.Option("--draft", help="Do not start it yet.")] = False,
    url: Url = None,
    app_key: AppKey = None,
    as_json: AsJson = False,
) -> None:
    """Create a model from a built-in one or a program file, and start it. May be repeated."""
    if (builtin is None) == (program is None):
        raise InvalidInput("give either --builtin NAME or --program FILE")
    if classes is not None and builtin is None:
        raise InvalidInput("--classes goes with --builtin: a program file says its own")
    with developer(url, app_key) as cloud:
        training = _plan(plan, builtin)
        data = program.read_bytes() if program is not None else _compiled(str(builtin), classes)
        cloud.put_model(name, training)
        info = cloud.put_program(name, data)
        if not draft:
            info = cloud.act(name, "start")
    _show(info, as_json=as_json)


@group.command("list")
def list_(
    archived: Annotated[bool, typer.Option("--archived", help="Archived ones too.")] = False,
    url: Url = None,
    app_key: AppKey = None,
    as_json: AsJson = False,
) -> None:
    """List the app's models, and the built-in ones when no key is given."""
    if not app_key:
        _list_builtin(as_json=as_json)
        return
    with developer(url, app_key) as cloud:
        models = cloud.models(archived=archived)
    if as_json:
        print_json([model.model_dump(mode="json") for model in models])
        return
    table = Table("model", "state", "version", "round", "counted", "accuracy on phones")
    for model in models:
        table.add_row(*_row(model))
    print_table(table)


@group.command()
def show(
    name: str,
    plan: Annotated[bool, typer.Option("--plan", help="Print the training plan as YAML, and nothing else.")] = False,
    url: Url = None,
    app_key: AppKey = None,
    as_json: AsJson = False,
) -> None:
    """Show a model; without an app key, a built-in one."""
    if app_key:
        with developer(url, app_key) as cloud:
            info = cloud.info(name)
        if plan:
            print(info.plan.to_yaml(), end="")
        else:
            _show(info, as_json=as_json)
        return
    from flsys_ray.models import base

    model = base.get(name)
    if plan:
        print(parse_plan(model.default_plan()).to_yaml(), end="")
    elif as_json:
        print_json(
            {
                "name": model.name,
                "summary": model.summary,
                "input_shape": model.input_shape,
                "input_meaning": model.input_meaning,
                "classes": model.classes,
                "plan": model.default_plan(),
            }
        )
    else:
        console.print(f"{model.name}: {model.summary}\ninput {model.input_shape}: {model.input_meaning}")
        console.print(f"classes: {', '.join(model.classes)}")


@group.command()
def rounds(name: str, url: Url = None, app_key: AppKey = None, as_json: AsJson = False) -> None:
    """List the rounds of a model that are over."""
    with developer(url, app_key) as cloud:
        found = cloud.rounds(name)
    if as_json:
        print_json([info.model_dump(mode="json") for info in found])
        return
    table = Table("round", "version", "assigned", "counted", "late", "given back", "loss", "accuracy on phones", "s")
    for info in found:
        table.add_row(*_round_row(info))
    print_table(table)


@group.command()
def start(name: str, url: Url = None, app_key: AppKey = None, as_json: AsJson = False) -> None:
    """Open version 0, or go on after a pause."""
    _act(name, "start", url, app_key, as_json=as_json)


@group.command()
def pause(name: str, url: Url = None, app_key: AppKey = None, as_json: AsJson = False) -> None:
    """Give out no more work for now."""
    _act(name, "pause", url, app_key, as_json=as_json)


@group.command()
def stop(name: str, url: Url = None, app_key: AppKey = None, as_json: AsJson = False) -> None:
    """Finish a model: its newest version stays."""
    _act(name, "stop", url, app_key, as_json=as_json)


@group.command()
def archive(name: str, url: Url = None, app_key: AppKey = None, as_json: AsJson = False) -> None:
    """Put a draft or a finished model away: it leaves the list, its versions stay."""
    _act(name, "archive", url, app_key, as_json=as_json)


@group.command()
def promote(
    name: str,
    version: Annotated[str, typer.Option(help="A number, or `latest`: always the newest.")],
    url: Url = None,
    app_key: AppKey = None,
    as_json: AsJson = False,
) -> None:
    """Choose the version that inference uses, in the cloud and on phones."""
    with developer(url, app_key) as cloud:
        _show(cloud.promote(name, None if version == "latest" else _number(version)), as_json=as_json)


@group.command()
def rollback(
    name: str,
    version: Annotated[int, typer.Option(min=0, help="The version to go on from.")],
    url: Url = None,
    app_key: AppKey = None,
    as_json: AsJson = False,
) -> None:
    """Go on from an older version: the next one has its parameters. The open round is given up."""
    with developer(url, app_key) as cloud:
        _show(cloud.rollback(name, version), as_json=as_json)


@group.command()
def evaluate(
    name: str,
    data: Annotated[str, typer.Option(help="A data set; see `flsys data list`.")],
    version: Annotated[str, typer.Option(help="Versions with commas, or `latest`.")] = "latest",
    held_out: Annotated[float, typer.Option(min=0.01, max=1, help="Share of users held out; 1: all users.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split by user.")] = 0,
    url: Url = None,
    app_key: AppKey = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate versions on the held-out users of a data set, with the device program."""
    from flsys_ray.commands.evaluation import HeldOut

    with developer(url, app_key) as cloud:
        info = cloud.info(name)
        if info.version is None:
            raise InvalidInput(f"model {name!r} has no version yet: start it first")
        test = HeldOut.load(cloud, info, data, held_out, seed)
        numbers = [info.version if part == "latest" else _number(part) for part in split_names(version)]
        results = [test.evaluate(cloud, number) for number in numbers]
    if as_json:
        print_json([result.as_json() for result in results])
        return
    for result in results:
        console.print(result.line())


@group.command()
def evaluation(
    name: str,
    version: Annotated[int | None, typer.Option(min=0, help="A version; default: the one that serves.")] = None,
    url: Url = None,
    app_key: AppKey = None,
    as_json: AsJson = False,
) -> None:
    """Show what phones found about a version: those that trained from it, and those that evaluated it only."""
    with developer(url, app_key) as cloud:
        found = cloud.evaluation(name, version)
    if as_json:
        print_json(found)
        return
    metrics = found.metrics
    if metrics is None:
        console.print(f"{name}: version {found.version}: no phone has evaluated it yet")
        return
    console.print(f"{name}: version {found.version}: {_found(metrics)}")
    for what, part in (("phones that trained from it", found.cohort), ("evaluation assignments", found.assigned)):
        if part is not None:
            console.print(f"  {what}: {_found(part)}")
    table = Table("class", "examples", "accuracy")
    for each in metrics.per_class or ():
        table.add_row(found.classes[each.label], str(each.count), f"{each.correct / each.count:.3f}")
    print_table(table)


@group.command()
def augment(
    name: str,
    data: Annotated[str | None, typer.Option(help="A data set, or the folder of one; see `flsys data list`.")] = None,
    file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A shared set, safetensors: see docs/protocol.md.")
    ] = None,
    examples_per_class: ExamplesPerClass = None,
    users: Users = None,
    held_out: HeldOut = 0.2,
    seed: Seed = 0,
    url: Url = None,
    app_key: AppKey = None,
    as_json: AsJson = False,
) -> None:
    """Give a model a class-uniform set, of which phones mix in the share that its plan says. From the next round on."""
    if (data is None) == (file is None):
        raise InvalidInput("give either --data DATASET or --file FILE")
    with developer(url, app_key) as cloud:
        info = cloud.info(name)
        source = Source(str(data), users, examples_per_class, held_out, seed)
        body = file.read_bytes() if file is not None else shared_set(cloud, info, source)
        info = cloud.put_shared(name, body)
    if as_json:
        print_json(info)
        return
    share = info.plan.augmentation.share
    console.print(
        f"{name}: shared set {str(info.shared_sha256)[:12]}, {len(body)} bytes; phones mix in {share:.0%} of it"
    )
    if share == 0:
        console.print("its plan asks for none of it: set augmentation.share")


def _found(metrics: Metrics) -> str:
    return (
        f"accuracy {metrics.accuracy:.3f}, loss {metrics.loss:.3f} "
        f"on {metrics.examples} examples of {metrics.devices} phones"
    )


def _act(name: str, action: Action, url: str | None, app_key: str | None, *, as_json: bool) -> None:
    with developer(url, app_key) as cloud:
        _show(cloud.act(name, action), as_json=as_json)


def _plan(file: Path | None, builtin: str | None) -> TrainingPlan:
    if file is not None:
        return parse_plan_yaml(text_of(file, "plan"))
    if builtin is None:
        raise InvalidInput("a program file needs a training plan: give --plan FILE")
    from flsys_ray.models import base

    return parse_plan(base.get(builtin).default_plan())


def _compiled(builtin: str, classes: str | None) -> bytes:
    from flsys_ray.builtin import compile_builtin

    with console.status(f"compiling {builtin} (loads TensorFlow)"):
        return compile_builtin(builtin, split_names(classes) if classes else None)


def _show(info: ModelInfo, *, as_json: bool) -> None:
    if as_json:
        print_json(info)
        return
    state, version = info.state, "no version yet" if info.version is None else f"version {info.version}"
    console.print(f"{info.model}: {state}, {version}")
    if info.promoted:
        console.print(f"inference uses version {info.serving}")
    if info.open_round is not None:
        counters = info.open_round.counters
        console.print(
            f"round {info.open_round.round}: {counters.assigned} assigned, {counters.counted} counted, "
            f"{counters.given_back} given back, {counters.pending} at work",
        )
    if info.last_metrics is not None:
        metrics = info.last_metrics
        console.print(f"on {metrics.devices} phones' held-out examples: accuracy {metrics.accuracy:.3f}")


def _row(model: ModelInfo) -> tuple[str, ...]:
    open_round = model.open_round
    return (
        model.model,
        model.state,
        "-" if model.version is None else str(model.version),
        "-" if open_round is None else str(open_round.round),
        "-" if open_round is None else f"{open_round.counters.counted} of {open_round.counters.assigned}",
        "-" if model.last_metrics is None else f"{model.last_metrics.accuracy:.3f}",
    )


def _round_row(info: RoundInfo) -> tuple[str, ...]:
    counters = info.counters
    return (
        str(info.round),
        "no quorum" if info.committed is None else str(info.committed),
        *(str(n) for n in (counters.assigned, counters.counted, counters.late, counters.given_back)),
        "-" if info.mean_loss is None else f"{info.mean_loss:.3f}",
        "-" if info.evaluation is None else f"{info.evaluation.accuracy:.3f}",
        f"{info.closed_at - info.opened_at:.1f}",
    )


def _list_builtin(*, as_json: bool) -> None:
    from flsys_ray.models import base

    models = base.all_models()
    if as_json:
        print_json([{"name": name, "summary": model.summary} for name, model in models.items()])
        return
    table = Table("built-in model", "summary")
    for name, model in models.items():
        table.add_row(name, model.summary)
    print_table(table)


def _number(text: str) -> int:
    if not text.isdigit():
        raise InvalidInput(f"--version: {text!r} is neither a number nor `latest`")
    return int(text)
