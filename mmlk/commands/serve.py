"""Show a web page that predicts the pictures which are dropped on it.

    mmlk serve fpn_recnext_m3_ade20k recnext_m3
    mmlk serve my_config-0123abcd.pth model.onnx --port 8000

Each MODEL is what mmlk predict takes: a config or name with published weights, CONFIG=CHECKPOINT, a
checkpoint that holds its config, or an exported file; the page switches between them. A model is
loaded when it is first used. Only this machine can reach the page, unless --host names another address:
there is no password.
"""

from __future__ import annotations

import argparse
import socket
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from mmlk.cli import arguments

_NEEDED = ('starlette', 'uvicorn')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    models = parser.add_argument('models', nargs='+', metavar='MODEL', help='as of mmlk predict')
    models.completer = arguments.complete_config
    parser.add_argument('--host', default='127.0.0.1', help='address (default: %(default)s)')
    parser.add_argument('--port', type=int, default=7860, help='port (default: %(default)s)')
    parser.add_argument('--device', help='where to compute (default: the GPU if there is one)')
    arguments.add_unsafe_pickle(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; returns the exit status."""
    with arguments.plain_errors(args.program):
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise ValueError(f'{" and ".join(missing)} are missing: pip install "mmlk[serve]"')
        application = build(args)
        import uvicorn

        listening = _listen(args.host, args.port)
    print(f'http://{args.host}:{args.port} (Ctrl-C ends it)', flush=True)
    config = uvicorn.Config(application, log_level='warning')
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections at this address.

    Raises:
        ValueError: If it cannot be had.
    """
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f'cannot listen on {host}, port {port}: {error}; give another --host or --port'
        ) from None


def build(args: argparse.Namespace):
    """The application, after every name has been looked up.

    Raises:
        ValueError: If nothing has the name of a model, or a file of weights is missing or damaged.
    """
    from mmlk.checkpoints import zoo
    from mmlk.cli.checkpoint import locate
    from mmlk.inference import names
    from mmlk.inference.load import load_model
    from mmlk.serve.app import Models, application

    loaders = {}
    for text in args.models:
        model, _, checkpoint = text.partition('=')
        if Path(model).suffix in names.EXPORTED:
            if not Path(model).is_file():
                raise ValueError(f'there is no file {model!r}')
        else:
            names.resolve(model, checkpoint or None)
            if checkpoint and not zoo.is_remote(checkpoint):
                locate(checkpoint)
        device = 'cpu' if Path(model).suffix in names.EXPORTED else args.device
        loaders[text] = partial(
            load_model,
            model,
            checkpoint or None,
            device=device,
            unsafe_pickle=args.unsafe_pickle,
        )
    return application(Models(loaders))
