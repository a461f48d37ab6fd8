"""``cellwright train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context, Option

from cellwright.apps import results, show
from cellwright.apps.values import parse_sizes, parse_values
from cellwright.errors import UsageError
from cellwright.train.settings import (
    LAYER_OPTIONS,
    NONFINITE,
    OPTIMIZERS,
    POOLINGS,
    PRECISIONS,
    SCHEDULES,
    Settings,
)

_DEFAULT = Settings()
_SETTINGS = (
    "cell", "hidden_size", "num_layers", "bidirectional", "pooling", "dropout", "epochs",
    "batch_size", "learning_rate", "weight_decay", "noise", "offset", "crop", "validation",
    "seed", "threads", "engine", "optimizer", "momentum", "schedule", "gradient_clip", "tbptt",
    "decay", "decay_epochs", "gradient_clip_value", "nonfinite", "accumulate", "average",
    "patience", "precision", "devices",
)  # fmt: skip
_MODEL, _TRAINING, _DATA, _RUN = "Model", "Training", "Data", "Run"


def _option(help: str, panel: str, default: str | bool = True, metavar: str | None = None) -> Any:
    return Option(help=help, show_default=default, metavar=metavar, rich_help_panel=panel)


def train(
    context: Context,
    source: Annotated[
        str | None,
        Argument(
            metavar="TASK|FILE",
            help="A task (see: cellwright tasks), path/to/file.py:task of your own, or a .ts or "
            "long CSV file.",
            show_default=False,
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        Option(
            "--with",
            help="An option of the task, as length=500.",
            metavar="NAME=VALUE",
            show_default="see cellwright tasks TASK",
            rich_help_panel=_DATA,
        ),
    ] = None,
    cell: Annotated[
        str, _option("A cell's name, or path/to/file.py:cell.", _MODEL, metavar="CELL")
    ] = _DEFAULT.cell,
    hidden_size: Annotated[int, _option("Units of the states.", _MODEL)] = _DEFAULT.hidden_size,
    num_layers: Annotated[
        int, _option("Layers, one above the other.", _MODEL)
    ] = _DEFAULT.num_layers,
    bidirectional: Annotated[
        bool, _option("Also run from the end.", _MODEL)
    ] = _DEFAULT.bidirectional,
    size: Annotated[
        list[str] | None,
        _option("Another size that the cell has, as projection=32.", _MODEL, metavar="NAME=N"),
    ] = None,
    pooling: Annotated[
        str, _option(f"What of all steps is classified: {', '.join(POOLINGS)}.", _MODEL)
    ] = _DEFAULT.pooling,
    dropout: Annotated[
        float, _option("Dropout between layers and before the head.", _MODEL)
    ] = _DEFAULT.dropout,
    layer: Annotated[
        list[str] | None,
        _option(
            f"An option of the layer, as init=chrono:100; one of {', '.join(LAYER_OPTIONS)}.",
            _MODEL,
            metavar="NAME=VALUE",
        ),
    ] = None,
    epochs: Annotated[
        int, _option("Times through the training series.", _TRAINING)
    ] = _DEFAULT.epochs,
    batch_size: Annotated[int, _option("Series in a batch.", _TRAINING)] = _DEFAULT.batch_size,
    optimizer: Annotated[
        str, _option(f"One of {', '.join(OPTIMIZERS)}.", _TRAINING)
    ] = _DEFAULT.optimizer,
    momentum: Annotated[float, _option("Of rmsprop and sgd.", _TRAINING)] = _DEFAULT.momentum,
    learning_rate: Annotated[
        float, _option("The largest learning rate.", _TRAINING)
    ] = _DEFAULT.learning_rate,
    find_learning_rate: Annotated[
        bool,
        Option(
            "--find-learning-rate",
            help="Choose the learning rate by a range test.",
            rich_help_panel=_TRAINING,
        ),
    ] = False,
    schedule: Annotated[
        str, _option(f"Of the learning rate: {', '.join(SCHEDULES)}.", _TRAINING)
    ] = _DEFAULT.schedule,
    decay: Annotated[
        float, _option("Factor of the schedules step and plateau.", _TRAINING)
    ] = _DEFAULT.decay,
    decay_epochs: Annotated[
        int, _option("Epochs between two decays, or without a lower loss.", _TRAINING)
    ] = _DEFAULT.decay_epochs,
    gradient_clip: Annotated[
        float, _option("Largest norm of the gradient.", _TRAINING)
    ] = _DEFAULT.gradient_clip,
    gradient_clip_value: Annotated[
        float | None, _option("Largest component of the gradient.", _TRAINING, "no limit")
    ] = _DEFAULT.gradient_clip_value,
    nonfinite: Annotated[
        str,
        _option(f"What to do where a gradient is not finite: {', '.join(NONFINITE)}.", _TRAINING),
    ] = _DEFAULT.nonfinite,
    accumulate: Annotated[
        int, _option("Batches that are averaged for one update.", _TRAINING)
    ] = _DEFAULT.accumulate,
    average: Annotated[
        float | None,
        _option("Decay of a moving average of the weights, as 0.999.", _TRAINING, "none"),
    ] = _DEFAULT.average,
    patience: Annotated[
        int | None,
        _option("Stop after so many epochs without a lower loss.", _TRAINING, "never"),
    ] = _DEFAULT.patience,
    precision: Annotated[
        str, _option(f"Of torch's operations: {', '.join(PRECISIONS)}.", _TRAINING)
    ] = _DEFAULT.precision,
    tbptt: Annotated[
        int | None,
        _option("Cut gradients after so many steps; states go on.", _TRAINING, "whole sequences"),
    ] = _DEFAULT.tbptt,
    weight_decay: Annotated[float, _option("Weight decay.", _TRAINING)] = _DEFAULT.weight_decay,
    noise: Annotated[
        float | None,
        _option("Noise on each standardised value.", _TRAINING, f"the task's, or {_DEFAULT.noise}"),
    ] = None,
    offset: Annotated[
        float | None,
        _option("Noise on a whole feature.", _TRAINING, f"the task's, or {_DEFAULT.offset}"),
    ] = None,
    crop: Annotated[
        float | None,
        _option("Largest share of steps cut off.", _TRAINING, f"the task's, or {_DEFAULT.crop}"),
    ] = None,
    validation: Annotated[
        float, _option("Share of the training series to choose the best epoch by.", _TRAINING)
    ] = _DEFAULT.validation,
    seed: Annotated[int, _option("Of weights, order, noise and splits.", _RUN)] = _DEFAULT.seed,
    threads: Annotated[int, _option("Threads of torch.", _RUN)] = _DEFAULT.threads,
    devices: Annotated[int, _option("Processes that share each batch.", _RUN)] = _DEFAULT.devices,
    engine: Annotated[
        str | None, _option("What runs the cell: cpu or reference.", _RUN, "the one that suits")
    ] = _DEFAULT.engine,
    output: Annotated[
        Path | None, _option("The run's folder.", _RUN, "runs/TASK-DATE-TIME")
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Continue the run in --output.", rich_help_panel=_RUN)
    ] = False,
    overwrite: Annotated[
        bool,
        Option("--overwrite", help="Replace an earlier run in --output.", rich_help_panel=_RUN),
    ] = False,
    tensorboard: Annotated[
        bool, Option("--tensorboard", help="Also log for TensorBoard.", rich_help_panel=_RUN)
    ] = False,
    test: Annotated[Path | None, _option("A file to test on.", _DATA)] = None,
    test_share: Annotated[
        float | None,
        _option("Without --test: share of each label's series to test on.", _DATA, "0.2"),
    ] = None,
    series_column: Annotated[
        str | None, _option("CSV: the series' column.", _DATA, "by its name")
    ] = None,
    time_column: Annotated[
        str | None, _option("CSV: the time's column.", _DATA, "by its name")
    ] = None,
    label_column: Annotated[
        str | None, _option("CSV: the label's column.", _DATA, "by its name")
    ] = None,
) -> None:
    """Train a model on a task or on a file of your own.

    A task may have other defaults than those shown here: cellwright tasks TASK lists them.
    """
    given = locals()
    changes = {name: given[name] for name in _SETTINGS if _is_given(context, name)}
    if size:
        changes["sizes"] = parse_sizes(size)
    if layer:
        changes["layer"] = parse_values(layer, "--layer")
    if source is None and not resume:
        raise UsageError(f"which task or file? {_known_tasks()}")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if resume and find_learning_rate:
        raise UsageError("--resume and --find-learning-rate exclude each other")
    if find_learning_rate and "learning_rate" in changes:
        raise UsageError("--learning-rate and --find-learning-rate exclude each other")
    if resume and output is None:
        raise UsageError("--resume: say with --output which run to continue")
    extra = parse_values(options or [], "--with")
    # A wrong value is found before torch is loaded; whether a batch suffices for the devices is
    # not known before the task has said how large it is.
    alone = {"devices"} if "batch_size" not in changes else set()
    Settings(**{name: value for name, value in changes.items() if name not in alone})

    from cellwright.apps import experiment

    named = experiment.reference(source, output)
    if named is not None:
        asked = {**changes, **extra}
        experiment.train(named, asked, output, resume=resume, overwrite=overwrite)
        return
    from cellwright.tasks import runs
    from cellwright.tasks.long_csv import Columns
    from cellwright.tasks.sources import Source
    from cellwright.train import objectives

    columns = Columns(series_column, time_column, label_column)
    parsed = None
    if source is not None:
        test_file = None if test is None else str(test)
        parsed = Source.parse(source, test_file, test_share, columns, extra)
    if resume and output is not None:
        run = runs.reopen(output, parsed, changes, tensorboard=tensorboard)
        if not isinstance(run, runs.Run):
            from cellwright.train import folder

            show.say("This run has ended; there is nothing to resume.")
            metrics = folder.read_metrics(run)
            named = metrics.get("objective", "classification")
            results.show_results(metrics, objectives.get(named))
            return
    else:
        assert parsed is not None
        if find_learning_rate:
            show.say("trying learning rates ...")
        run = runs.prepare(
            parsed, changes, output,
            overwrite=overwrite, tensorboard=tensorboard, find_rate=find_learning_rate,
        )  # fmt: skip
        if find_learning_rate:
            show.say(f"learning rate {run.settings.learning_rate:g}")
    results.announce(run)
    objective = objectives.get(run.source.objective)
    with show.on_interrupt(show.to_resume(run.folder.path)):
        metrics = runs.execute(run, show.out)
    results.show_results(metrics, objective)
    results.show_published(run, objective)
    show.say(f"\nResults are in {run.folder.path}")


def _is_given(context: Context, name: str) -> bool:
    """Whether the command line says it; a task may have another default than the one shown."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _known_tasks() -> str:
    from cellwright import tasks

    return f"tasks are {', '.join(tasks.names())}; a file's name ends in .ts or .csv"
