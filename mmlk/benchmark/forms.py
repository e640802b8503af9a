"""The forms of a model: how each is built and called."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from mmlk.benchmark.process import Timed

if TYPE_CHECKING:
    from torch import nn

    from mmlk.export.graph import Graph

# A layer scale at its initial 1e-6 would let a wrong block agree with a right one.
_LAYER_SCALE = 0.1


@dataclass(frozen=True)
class Task:
    """What is timed, as the process of a form is told.

    Attributes:
        model: Config, name or file.
        config: Config file; None for a name of :func:`mmlk.create_model`, an exported file, or a
            checkpoint that holds its config.
        checkpoint: File of the weights; None where they are random or exported.
        part: Part of the model, None for the whole.
        batch_size: Images per call.
        shape: Height and width.
        device: ``cpu``, or a GPU for the forms of torch.
        threads: Threads of every form.
        unsafe_pickle: Let the checkpoint run code while it is read.
        image: Picture that is computed on; None stands for noise.
    """

    model: str
    config: str | None
    checkpoint: str | None
    part: str | None
    batch_size: int
    shape: tuple[int, int] | None
    device: str
    threads: int
    unsafe_pickle: bool = False
    image: str | None = None


def caller(form: str, task: Task, folder: Path, source: Path | None, image: np.ndarray) -> Timed:
    """Form ``form`` of the task: ``source`` where it is exported, else with weights in ``folder``."""
    run, peak = _run_and_peak(form, task, folder, source, image)
    return Timed(run, run, peak)


def engine(form: str, task: Task, source: Path, image: np.ndarray) -> Timed:
    """An engine whose peak leaves out what the process held before it read the file.

    What it takes to read the file does not count, if it is more than what the steps take.
    """
    importlib.import_module(form)
    before = reset_peak()
    timed = caller(form, task, source.parent, source, image)

    def outputs() -> list[np.ndarray]:
        found = timed.outputs()
        reset_peak()
        return found

    return Timed(outputs, timed.step, lambda: timed.peak() - before)


def _run_and_peak(
    form: str, task: Task, folder: Path, source: Path | None, image: np.ndarray
) -> tuple[Callable[[], list[np.ndarray]], Callable[[], float]]:
    if form == 'onnxruntime':
        return _onnxruntime(str(source), task.threads, image), peak_of_process
    if form == 'openvino':
        return _openvino(str(source), task.threads, image), peak_of_process
    import torch

    torch.set_num_threads(task.threads)
    x = torch.from_numpy(image)
    if form == 'torch.export':
        from mmlk.export.write import runner

        run = runner(Path(task.model))[0]
        return lambda: [value.numpy() for value in run(x)], peak_of_process
    graph, _ = build_graph(task)
    graph.load_state_dict(torch.load(folder / 'weights.pth', weights_only=True))
    if form == 'folded':  # as prediction and evaluation do
        from mmlk.models.folding import folded_copy

        graph, _ = folded_copy(graph)
    elif form == 'compiled':
        graph = graph.folded()
    graph, x = graph.to(task.device), x.to(task.device)
    call = compiled(graph) if form == 'compiled' else graph

    def run_torch() -> list[np.ndarray]:
        with torch.no_grad():
            y = call(x)
        return [value.cpu().numpy() for value in ([y] if isinstance(y, torch.Tensor) else y)]

    if torch.device(task.device).type == 'cuda':
        return run_torch, lambda: torch.cuda.max_memory_allocated(task.device) / 2**20
    return run_torch, peak_of_process


def compiled(network: nn.Module) -> Callable:
    """``network`` under torch.compile; without gradients its weights become constants (freezing).

    Freezing is a setting of the whole process, so this is for one that serves this form alone.
    """
    import torch

    from mmlk.ops import compat

    compat.freeze_compiled_weights()
    return torch.compile(network)


def _onnxruntime(path: str, threads: int, image: np.ndarray) -> Callable[[], list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: image})


def _openvino(path: str, threads: int, image: np.ndarray) -> Callable[[], list[np.ndarray]]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({model.inputs[0]: list(image.shape)})
    settings = {
        'INFERENCE_NUM_THREADS': threads,
        'PERFORMANCE_HINT': 'LATENCY',
        # it takes 16-bit numbers where the processor has them, and deviates
        'INFERENCE_PRECISION_HINT': 'f32',
    }
    compiled = core.compile_model(model, 'CPU', settings)
    return lambda: [np.array(value) for value in compiled([image]).values()]


def build_graph(task: Task) -> tuple[Graph, tuple[int, int]]:
    """The unfolded network as a function of the image, and the size at which it is usual.

    Without a checkpoint the weights are random.
    """
    import torch

    from mmlk.export.detector import DetectorGraph
    from mmlk.export.graph import Graph, part_of
    from mmlk.models.names import is_model

    torch.manual_seed(0)
    if task.config is None and task.checkpoint is None and is_model(task.model):
        from mmlk.models.create import create_model

        network, whole = create_model(task.model), 'classifier'
        if task.part == 'backbone':
            network = create_model(task.model, features_only=True)
        cfg = SimpleNamespace(model=dict(data_preprocessor=dict(bgr_to_rgb=True)))
        shape = (224, 224)
    else:
        from mmlk.cli.evaluation import usual_shape
        from mmlk.inference.checkpointed import network_of

        network, cfg, _ = network_of(task.config, task.checkpoint, task.unsafe_pickle)
        whole = part_of(network)
        shape = (224, 224) if task.part == 'backbone' else usual_shape(cfg)
    if task.checkpoint is None:
        show_layers(network)
    part = task.part or whole
    graph = DetectorGraph(network, cfg) if part == 'detector' else Graph(network, cfg, part)
    return graph.eval(), shape


def show_layers(network: nn.Module) -> None:
    """Give layer scales, in place, a value at which the outputs show what every block computes."""
    import torch

    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith('.gamma'):
                value.fill_(_LAYER_SCALE)


def peak_of_process() -> float:
    """Largest memory that this process has held, in MB."""
    status = Path('/proc/self/status')
    if status.is_file():
        # what getrusage tells under Linux includes the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)


def reset_peak() -> float:
    """Have :func:`peak_of_process` count from now on; what the process holds now, in MB.

    Only Linux can; elsewhere nothing changes, and the result is the peak so far.
    """
    forget = Path('/proc/self/clear_refs')
    with contextlib.suppress(OSError):
        forget.write_text('5')
    return peak_of_process()
