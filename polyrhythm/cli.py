"""The command line: flags become the planner's words, a function of the API does the work, a renderer shows the result.

Nothing but typer is imported before a command runs, so that `--help` is quick. Exit codes: those of `PolyrhythmError`.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from planner.errors import PolyrhythmError

BUG, INFEASIBLE, ABOVE, INTERRUPTED = 1, 4, 9, 130
# click's base of all errors in how a command was called; typer brings its own copy of click or uses the installed one.
ClickError: Any = typer.BadParameter.__mro__[2]


class Face(TyperGroup):
    """The group of all commands; `main` is where every error becomes a sentence and an exit code."""

    def main(self, *words: Any, **options: Any) -> Any:
        """As click's: the first argument, or `args`, is the words of the command line."""
        standalone = options.get("standalone_mode", True)
        given = options.pop("args", None) if not words else words[0]
        args = sys.argv[1:] if given is None else list(given)
        run, options["standalone_mode"] = super().main, False
        code = _outcome(lambda: run(args, *words[1:], **options), args)
        if standalone:
            # A rank of torchrun's: the teardown of gloo's threads must not turn the code into 134.
            if "RANK" in os.environ and "torch" in sys.modules:
                from exec.launch import leave

                leave(code)
            sys.exit(code)
        return code


app = typer.Typer(
    cls=Face,
    help="One image, fast, on several unequal GPUs: plan it, simulate it, run it.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def main() -> None:
    """The console command `polyrhythm`."""
    app(prog_name="polyrhythm")


@app.callback(invoke_without_command=True)
def polyrhythm(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from polyrhythm import __version__

        typer.echo(f"polyrhythm {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _outcome(command: Callable[[], Any], args: list[str]) -> int:
    """The exit code of `command`, with its error told."""
    options = args[: args.index("--")] if "--" in args else args
    try:
        code = command()
        if code == INTERRUPTED:  # which newer versions of typer make of Ctrl-C
            raise typer.Abort()
        return code if isinstance(code, int) else 0
    except Exception as error:
        if "--traceback" in options:
            import traceback

            traceback.print_exc()
        return _complain(error, "--json" in options)
    except KeyboardInterrupt:
        return _complain(typer.Abort(), "--json" in options)


def _complain(error: Exception, as_json: bool) -> int:
    from polyrhythm.render import complain

    if isinstance(error, PolyrhythmError):
        code, message = error.exit_code, str(error)
    elif isinstance(error, ClickError):
        code, message = error.exit_code, error.format_message().rstrip(".") + _hint(error)
    elif isinstance(error, typer.Abort):
        code, message = INTERRUPTED, "interrupted"
    else:
        code, message = BUG, f"a bug of ours: {type(error).__name__}: {error}; --traceback shows where"
    complain(code, message, as_json)
    for note in getattr(error, "__notes__", ()):  # the end of a failed rank's log
        print(note, file=sys.stderr)
    return code


def _hint(error: Any) -> str:
    path = getattr(getattr(error, "ctx", None), "command_path", None)
    return f" (see {path} --help)" if path else ""


COMMON = [
    inspect.Parameter(
        "as_json",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")],
    ),
    inspect.Parameter(
        "traceback",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--traceback", help="With an error, say where in our code.")],
    ),
]


def command(*shared: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command that returns a result, or a result and an exit code; it is shown as `--json` wants it.

    A parameter called like a function of `shared` is replaced by that function's flags and gets what they mean.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        parameters = list(_merged(function, shared))

        @functools.wraps(function)
        def call(**given: Any) -> None:
            from polyrhythm.render import show

            as_json, _ = given.pop("as_json"), given.pop("traceback")
            for flags in shared:
                taken = {name: given.pop(name) for name in inspect.signature(flags).parameters}
                given[flags.__name__] = flags(**taken)
            returned = function(**given)
            result, code = returned if isinstance(returned, tuple) else (returned, 0)
            show(result, as_json)
            raise typer.Exit(code)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(function.__name__.rstrip("_"))(call)
        return call

    return register


def _merged(function: Callable[..., Any], shared: tuple[Callable[..., Any], ...]) -> Any:
    """The command's own parameters, with those of shared flags in their places, then the common ones."""
    donors = {flags.__name__: flags for flags in shared}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in donors:
            found = inspect.signature(donors[parameter.name]).parameters.values()
            yield from (p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in found)
        else:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    yield from COMMON


# The commands, in the order of --help.
from polyrhythm import cli_machine, cli_perform, cli_plan, cli_serve, cli_sweep, cli_traces  # noqa: E402, F401
