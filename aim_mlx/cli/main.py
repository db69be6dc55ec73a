"""`aim-mlx`: the commands, and how every one of them ends."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

import aim_mlx
from aim_mlx.cli import (
    classify,
    convert,
    doctor,
    download,
    duplicates,
    embed,
    export,
    export_model,
    finetune,
    init,
    inspect,
    knn,
    lit,
    merge,
    models,
    pretrain,
    probe,
    search,
    verify,
    zeroshot_eval,
)
from aim_mlx.cli.help import App
from aim_mlx.cli.start import is_interrupt
from aim_mlx.errors import (
    AimError,
    AssumedHeadsWarning,
    BackendError,
    DarkImageWarning,
    OverflowWarning,
    TruncatedTextWarning,
    UntrainedModelWarning,
)
from aim_mlx.wording import escaped

_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_INTERRUPTED = "interrupted"
_LONGEST_LINE = 2000  # characters of a message, which may quote a checkpoint's text

app = App(
    help="Turn photos into embeddings with Apple's AIM vision encoders.",
    add_completion=False,
    rich_markup_mode=None,  # plain help: importing rich would double the time of --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(aim_mlx.__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("embed")(embed.embed)
app.command("search")(search.search)
app.command("duplicates")(duplicates.duplicates)
app.command("classify")(classify.classify)
app.command("zeroshot-eval")(zeroshot_eval.zeroshot_eval)
app.command("merge")(merge.merge)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("models")(models.models)
app.command("download")(download.download)
app.add_typer(lit.app, name="lit")
app.add_typer(probe.app, name="probe")
app.command("finetune")(finetune.finetune)
app.command("fuse")(finetune.fuse)
app.command("pretrain")(pretrain.pretrain)
app.command("caption")(pretrain.caption)
app.command("continue")(pretrain.continue_image)
app.command("knn")(knn.knn)
app.command("init")(init.init)
app.command("inspect")(inspect.inspect)
app.command("convert")(convert.convert)
app.command("export-model")(export_model.export_model)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Runs a command; errors become one line on stderr and the exit code of their kind.

    A closed pipe ends a command quietly with 1: typer sees to that.
    """
    for kind in (UntrainedModelWarning, AssumedHeadsWarning, TruncatedTextWarning):
        warnings.simplefilter("always", kind)
    for kind in (DarkImageWarning, OverflowWarning):
        warnings.simplefilter("once", kind)
    warnings.showwarning = _show_warning
    _quieten_pillow()
    # The Hub's client reads these when it is imported: no lines of its own beside the bar and our
    # errors, no telemetry. What the user has set stays.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    """The exit code of a command; with --debug its errors are raised."""
    if arguments in [[], *([group.name] for group in app.registered_groups)]:
        arguments = [*arguments, "--help"]
    try:
        result = _command()(args=arguments, prog_name="aim-mlx", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _give_up_stdout()
        return 1
    except (KeyboardInterrupt, Exception) as error:
        message, code = _explained(error)
        if "--debug" in arguments and message != _INTERRUPTED:
            raise
        if isinstance(error, OSError) and error.errno in _STORAGE:
            _give_up_stdout()
        return _fail(message, code)
    if result == 130:  # typer's own way to end at Ctrl-C says nothing
        return _fail(_INTERRUPTED, 130)
    return result if isinstance(result, int) else 0


@cache  # whoever runs several commands in one process waits for this once
def _command() -> Callable[..., object]:
    return typer.main.get_command(app)


def _explained(error: BaseException) -> tuple[str, int]:
    """What went wrong in a line, and the exit code."""
    if isinstance(error, TyperException):
        return error.format_message(), 2
    # After Ctrl-C our errors say what is kept; only a back end that seems to be missing may be one
    # whose import was interrupted.
    interrupted = isinstance(error, Abort) or is_interrupt(error)
    if isinstance(error, AimError) and not (interrupted and isinstance(error, BackendError)):
        return str(error), error.exit_code
    if interrupted:
        return _INTERRUPTED, 130
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return f"cannot write: {error.strerror}: make room and run again", 5
    if isinstance(error, FileNotFoundError) and _is_working_folder_gone():
        return "the folder that this was started in is gone: change to another folder", 2
    if _is_out_of_memory(error):
        return "out of memory: close other programs, or raise the limit (ulimit -v)", 1
    return f"{type(error).__name__}: {error} (--debug shows where)", 1


def _is_working_folder_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _give_up_stdout() -> None:
    """Drops what could not be written: Python would try again as it ends, and complain."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_out_of_memory(error: BaseException) -> bool:
    """Also where the system had no room for a thread's stack or for a library."""
    texts = ("can't start new thread", "failed to map segment", "cannot allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)


def _fail(message: str, code: int) -> int:
    line = escaped(" ".join(message.split())) or "failed"
    print(f"aim-mlx: error: {line[:_LONGEST_LINE]}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _warn_once(f"aim-mlx: warning: {escaped(str(message))[:_LONGEST_LINE]}")


@cache  # the filter "once" forgets what it has shown whenever any library changes the filters
def _warn_once(line: str) -> None:
    print(line, file=sys.stderr)


def _quieten_pillow() -> None:
    """Pillow remarks on photos that it reads all the same; those it cannot read have a reason."""
    warnings.filterwarnings("ignore", module=r"PIL\b")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    _quieten_libtiff()


def _quieten_libtiff() -> None:
    """It writes to descriptor 2 by itself, unless its handler is taken away for the process."""
    import ctypes

    from PIL import _imaging

    # Looked up in what Pillow's module is linked with, which is the copy that it uses.
    with suppress(OSError, AttributeError):
        handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        handler(None)
