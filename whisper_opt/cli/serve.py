"""``whisper-opt serve``: the HTTP server."""

from __future__ import annotations

import argparse

from whisper_opt.cli.options import add_options, options_from
from whisper_opt.core.allocator import few_arenas
from whisper_opt.core.errors import BackendUnavailable
from whisper_opt.core.options import LoadOptions, ServeOptions
from whisper_opt.core.remedies import install_hint
from whisper_opt.transcription.model import Whisper

__all__ = ["EXAMPLES", "add_serve_arguments"]

EXAMPLES = """\
examples:
  whisper-opt serve engines/base
  whisper-opt serve tiny.en large=engines/large-v3 --host 0.0.0.0 --api-key-file keys.txt

"""


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, and the function that runs it."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="engine directory, short name, hub id or checkpoint, as for transcribe; NAME=MODEL:"
        " under a name of its own. The first one also has the names of OpenAI's models",
    )
    add_options(parser.add_argument_group("server options"), ServeOptions)
    add_options(parser.add_argument_group("device options"), LoadOptions)
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    try:
        from whisper_opt.serving.http.logs import set_up
        from whisper_opt.serving.http.server import Server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "whisper_opt":
            raise
        raise BackendUnavailable(
            f"whisper-opt serve needs the package {error.name}; {install_hint('server')}"
        ) from error
    few_arenas()
    loading = options_from(args, LoadOptions)
    server = Server(
        args.models,
        options_from(args, ServeOptions),
        load=lambda source: Whisper.load(source, options=loading),
    )
    set_up()
    server.run()
    return 0
