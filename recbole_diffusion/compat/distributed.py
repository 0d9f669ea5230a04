"""Training in several processes: on CPUs, too, with the batches, losses and metrics of one process."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

PATIENCE = 10  # seconds that an interrupted process has to end by itself


def bridge_distributed() -> None:
    """Put up every bridge of this file; in a single process none of them does anything."""
    _bridge_device()
    _bridge_loaders()
    _bridge_metrics()
    _bridge_trainer()


def is_distributed() -> bool:
    """Whether this is one of several processes that train together."""
    return dist.is_available() and dist.is_initialized()


def rank_and_world() -> tuple[int, int]:
    """Number of this process among all, and how many there are: (0, 1) for a process alone."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def from_rank_zero(make: Callable[[], Any]) -> Any:
    """What ``make()`` returns in the first process, in all; its ValueError or FileNotFoundError is raised in all."""
    if not is_distributed():
        return make()
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = make()
        except (ValueError, FileNotFoundError) as error:
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def of_all_processes(value: Any) -> list[Any]:
    """The plain value or tensors of each process, in the order of their ranks; in all of them."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def spawn(function: Callable[..., Any], nproc: int, *args: Any) -> Any:
    """Call ``function(rank, *args)`` in ``nproc`` new processes of this machine, and return what the first returns.

    Raises ValueError or FileNotFoundError as one of them does, in one line, and KeyboardInterrupt when all have ended.
    """
    import torch.multiprocessing as mp

    queue = mp.get_context("spawn").SimpleQueue()
    context = mp.spawn(_run_rank, args=(function, nproc, args, queue), nprocs=nproc, join=False)
    try:
        while not context.join():
            pass
    except KeyboardInterrupt:  # of the terminal, which tells all processes, or of this one alone
        for process in context.processes:
            process.join(PATIENCE)
            process.terminate()
            process.join()
        raise
    except mp.ProcessRaisedException as error:
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        if kind in ("ValueError", "FileNotFoundError"):  # of the user's making
            raise (ValueError if kind == "ValueError" else FileNotFoundError)(message) from None
        raise
    return queue.get()


def _run_rank(rank: int, function: Callable[..., Any], nproc: int, args: tuple, queue) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // nproc))
    result = function(rank, *args)
    dist.destroy_process_group()
    if rank == 0:
        queue.put(result)


def _bridge_device() -> None:
    """Let processes train together on CPUs.

    ``Config._init_device`` knows NCCL and GPUs alone, and asserts as many GPUs as processes.
    """
    from recbole.config import Config

    init_device = Config._init_device

    @functools.wraps(init_device)
    def _init_device(self: Config) -> None:
        values = self.final_config_dict
        gpu_id = values["gpu_id"]
        gpus = ",".join(map(str, gpu_id)) if isinstance(gpu_id, tuple) else str(gpu_id)
        if "local_rank" not in values or (gpus and torch.cuda.is_available()):
            init_device(self)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
            dist.init_process_group(
                backend="gloo",
                rank=values["local_rank"] + values["offset"],
                world_size=values["world_size"],
                init_method=f"tcp://{values['ip']}:{values['port']}",
            )
            values.update(gpu_id=gpus, device=torch.device("cpu"), single_spec=False)
        if rank_and_world()[0] != 0:  # one process speaks for all
            values.update(state="error", show_progress=False, verbose=False, log_wandb=False)

    Config._init_device = _init_device


class Share(Sampler):
    """Every ``world``-th index from this process's number on, each index in one process only.

    It takes the arguments of ``DistributedSampler``, which repeats rows until all processes have as many.
    """

    def __init__(self, rows: list[int], shuffle: bool = False, drop_last: bool = False):
        rank, world = rank_and_world()
        if len(rows) < world:
            raise ValueError(f"nproc [{world}] must be at most {len(rows)}, the number of rows to evaluate by.")
        self.rows = range(rank, len(rows), world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def _bridge_loaders() -> None:
    """Share out the batches that one process would make.

    RecBole's loaders draw with ``DistributedSampler``: other batches than one process has, and the last ones filled up
    with rows again, in evaluation as well. Here all processes draw the same batch and each makes its rows of it; users
    are evaluated by one process each.
    """
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
    from recbole.data.dataloader.general_dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader

    init = AbstractDataLoader.__init__

    @functools.wraps(init)
    def __init__(self: AbstractDataLoader, config, dataset, sampler, shuffle: bool = False) -> None:
        if not is_distributed():
            return init(self, config, dataset, sampler, shuffle)
        if isinstance(self, (FullSortEvalDataLoader, NegSampleEvalDataLoader)):
            with mock.patch.object(torch.utils.data.distributed, "DistributedSampler", Share):
                return init(self, config, dataset, sampler, shuffle)
        self.collate_fn = functools.partial(_own_rows, self.collate_fn, *rank_and_world())
        with mock.patch.dict(config.final_config_dict, single_spec=True):
            init(self, config, dataset, sampler, shuffle)
        self.sampler.set_epoch = lambda epoch: None  # which RecBole's trainer calls; the generator goes on by itself

    AbstractDataLoader.__init__ = __init__


def _own_rows(collate: Callable, rank: int, world: int, index: list[int]) -> Any:
    """This process's rows of a batch; where there are fewer rows than processes, one that will weigh nothing."""
    return collate(index[rank::world] or index[:1])


def loss_weight(model, interaction, loader, step: int) -> tuple[float, float]:
    """What this process's mean loss weighs in that of the whole batch: ``(in the gradient, in the sum of losses)``.

    It is a mean over the rows, unless the model's ``loss_terms(interaction)`` says over how many numbers. Gradients are
    averaged over processes, hence the difference.
    """
    if not is_distributed():
        return 1.0, 1.0
    terms = model.loss_terms(interaction) if hasattr(model, "loss_terms") else len(interaction)
    rank, world = rank_and_world()
    rows = min(loader.step, loader.sample_size - step * loader.step)
    own = torch.tensor([float(terms if rank < rows else 0)], dtype=torch.float64)
    total = sum_over_processes(own.clone()).item()
    return own.item() * world / total, own.item() / total


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes; it is changed in place."""
    if not is_distributed():
        return values
    placed = values.cuda() if dist.get_backend() == "nccl" else values
    dist.all_reduce(placed)
    return values.copy_(placed)


def _bridge_metrics() -> None:
    """Compute every metric over the users of all processes, as one process does.

    ``Trainer._map_reduce`` averages the rounded metrics of the processes, weighted by ``num_sample``, which counts four
    for every batch (the length of a tuple), whatever it holds (RecBole issue 2154, pull request 1872). Instead what
    was collected for each user is gathered, and so are metrics that are no mean, such as coverage.
    """
    from recbole.evaluator import Collector
    from recbole.trainer import Trainer

    get_data_struct = Collector.get_data_struct

    @functools.wraps(get_data_struct)
    def gathered(self: Collector):
        struct = get_data_struct(self)
        if is_distributed():
            rows = [key for key in struct._data_dict if key.startswith("rec.") or key == "data.label"]
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, {key: struct.get(key) for key in sorted(rows)})
            for key in rows:
                struct.set(key, torch.cat([part[key] for part in parts]))
        return struct

    Collector.get_data_struct = gathered
    Trainer._map_reduce = lambda self, result, num_sample: result


class _NoWriter:
    """Stands in for TensorBoard's writer in all processes but the first."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _bridge_trainer() -> None:
    """Wrap models on CPUs, let the first process alone write, and let all name the same checkpoint.

    ``AbstractTrainer`` gives ``DistributedDataParallel`` a GPU; every process opens TensorBoard, and names its
    checkpoint by the second in which it started.
    """
    from recbole.trainer import Trainer
    from recbole.trainer import trainer as module

    init, init_trainer = module.AbstractTrainer.__init__, Trainer.__init__

    @functools.wraps(init)
    def __init__(self, config, model) -> None:
        if config["single_spec"] or config["device"].type != "cpu":
            return init(self, config, model)
        self.config, self.model = config, model
        self.distributed_model = DistributedDataParallel(model)

    @functools.wraps(init_trainer)
    def __init_trainer__(self, config, model) -> None:
        if rank_and_world()[0] == 0:
            init_trainer(self, config, model)
        else:
            with mock.patch.object(module, "get_tensorboard", lambda logger: _NoWriter()):
                init_trainer(self, config, model)
        name = copy.copy(self.saved_model_file)
        self.saved_model_file = from_rank_zero(lambda: name)

    module.AbstractTrainer.__init__ = __init__
    Trainer.__init__ = __init_trainer__
