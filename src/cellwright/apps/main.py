"""``cellwright``: the entry of the command line."""

from __future__ import annotations

import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from cellwright.apps import show
from cellwright.apps.bench import bench
from cellwright.apps.catalogue import cells, tasks
from cellwright.apps.doctor import doctor
from cellwright.apps.reproduce import reproduce
from cellwright.apps.train import train
from cellwright.apps.use import evaluate, predict
from cellwright.errors import CellwrightError


class _Commands(TyperGroup):
    """Commands in whose errors a user sees one message and no traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CellwrightError as error:
            show.complain(str(error))
            raise SystemExit(2) from None
        except (MemoryError, RuntimeError) as error:
            # What torch raises on a processor has no type of its own.
            if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
                raise
            show.complain("there is not enough memory; a smaller model or batch needs less")
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            show.complain("interrupted")
            raise SystemExit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Recurrent cells, written as equations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (train, evaluate, predict, reproduce, cells, tasks, bench, doctor):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        from cellwright import __version__

        show.say(f"cellwright {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning without the line of code that it comes from."""
    show.warn(str(message))


def run() -> None:
    """Run the command line: exit code 0, 2 for a user's mistake, 130 for Ctrl-C."""
    warnings.showwarning = _warn
    app(prog_name="cellwright")


if __name__ == "__main__":
    run()
