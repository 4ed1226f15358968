"""A run on several devices: capture workers and trainer ranks, placed and supervised by Ray.

      capture worker 0 .. C-1   (Ray actors, restarted by Ray)        target forwards
              |  features, as object references
      trainer rank 0 .. T-1     (Ray Train, restarted from the latest checkpoint)    `train`, as under torchrun

There is no controller: each rank asks the workers for the samples of its own plan.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import ray
import torch
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError, get_preemption_info
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from torchspec.capture.base import Capture
from torchspec.config import RunConfig
from torchspec.console import speak_anywhere
from torchspec.errors import Stopped, UserError
from torchspec.files.writing import writing
from torchspec.launch.placement import check_nodes
from torchspec.launch.places import rank_share, take_places, worker_share
from torchspec.launch.remote import RemoteCapture
from torchspec.launch.servers import supply
from torchspec.launch.workers import REQUESTS, CaptureWorker, WorkerPool
from torchspec.methods.base import Method
from torchspec.nn.device import resolve_device
from torchspec.signals import SAVE, hearing
from torchspec.training.log import METRICS
from torchspec.training.loop import Serve, kept, train_together
from torchspec.training.stream import Source
from torchspec.transfer.base import open_transfer
from torchspec.transfer.mooncake_master import run_master

NAMESPACE = "torchspec"
PREEMPTION_STEPS = 10  # between questions to Ray, each of which makes all ranks wait for one another


def train_on_cluster(config: RunConfig, serve: Serve | None = None) -> None:
    """Starts or joins Ray, then runs the ranks, with a Mooncake master beside them where features travel that way and none is given.

    This process holds the lock of output_dir: ranks that outlive it by a second do not keep the next run from starting.
    """
    with writing(Path(config.output_dir) / METRICS, "torchspec train", lambda: kept(config)):
        _train_on_cluster(config, serve)


def _train_on_cluster(config: RunConfig, serve: Serve | None) -> None:
    connect(config)
    try:
        if config.inference.transfer != "mooncake" or config.inference.mooncake.master is not None:
            return run_ranks(config, serve)
        host = "127.0.0.1" if config.cluster.address is None else ray.util.get_node_ip_address()
        with run_master(config, host) as config:
            run_ranks(config, serve)
    finally:
        ray.shutdown()


def run_ranks(config: RunConfig, serve: Serve | None) -> None:
    """Runs `train_together` on every rank until it is done or has been restarted too often."""
    on_gpu = resolve_device(config.model.device).type == "cuda"
    check_resources(config, on_gpu)
    group = take_places(config, on_gpu)
    reason, asked = _reason_file(config), _asked_file(config)
    reason.unlink(missing_ok=True)
    asked.write_text("0")
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"config": config.model_dump_json(), "folder": os.getcwd(), "serve": serve, "group": group},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.training.num_ranks, use_gpu=on_gpu, resources_per_worker=rank_share(on_gpu), placement_strategy="PACK"
        ),
        run_config=RayRunConfig(
            name=run_name(config),
            storage_path=str(_folder(config)),
            failure_config=FailureConfig(max_failures=config.cluster.max_restarts),
        ),
    )
    try:
        # in a thread, since in the main one `fit` takes Ctrl-C for itself and ends the ranks where they are
        with hearing(lambda number: asked.write_text(str(number))), ThreadPoolExecutor(1) as thread:
            thread.submit(trainer.fit).result()
    except TrainingFailedError:
        if not reason.is_file():
            raise
    if reason.is_file():
        raise UserError(reason.read_text())
    if number := int(asked.read_text()):
        raise Stopped(number)


def _rank(arguments: dict) -> None:
    """One trainer rank. Ranks that failed are started again; where one of them told the user why, they have nothing left to do."""
    speak_anywhere()
    os.chdir(arguments["folder"])  # Ray Train runs its workers elsewhere, and paths in a config are relative to where it was started
    config = RunConfig.model_validate_json(arguments["config"])
    reason = _reason_file(config)
    if reason.is_file():
        return
    group = arguments["group"]
    try:
        source = supply(config) if group is None else partial(from_workers, group=group)
        train_together(config, source, arguments["serve"], Asked(_asked_file(config)))
    except UserError as error:
        reason.write_text(str(error))
        raise
    except Stopped:  # the checkpoint is complete: whoever was asked to end says so
        return


class Asked:
    """What a rank is asked for from outside: to end by the process that started the run, to save by Ray where a node is taken away.

    The file is there before the ranks are: what is opened anew is read anew, also over NFS, where a file that was missing stays so for a
    minute. Ray starts the ranks again elsewhere when the node is gone, and they resume from what was saved.
    """

    def __init__(self, file: Path):
        self.file, self.steps, self.known = file, 0, None

    def __call__(self) -> int:
        """Every rank asks after every step."""
        self.steps += 1
        return int(self.file.read_text() or 0) or (SAVE if self.steps % PREEMPTION_STEPS == 0 and self._is_taken_away() else 0)

    def _is_taken_away(self) -> bool:
        """True once for what Ray knows."""
        preemption = get_preemption_info()
        new, self.known = preemption != self.known, preemption
        return new and preemption is not None


def _reason_file(config: RunConfig) -> Path:
    return _folder(config) / "stopped_because.txt"


def _asked_file(config: RunConfig) -> Path:
    """Holds the number of the signal that asked the run to end, or 0."""
    return _folder(config) / "asked_to_end.txt"


def _folder(config: RunConfig) -> Path:
    folder = Path(config.output_dir).resolve() / "ray"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def connect(config: RunConfig) -> None:
    if not ray.is_initialized():
        ray.init(config.cluster.address, namespace=NAMESPACE, log_to_driver=True)


def run_name(config: RunConfig) -> str:
    """Workers belong to one run: another run on the same cluster has another output_dir."""
    return str(Path(config.output_dir).resolve()).strip("/").replace("/", "-")


def check_resources(config: RunConfig, on_gpu: bool) -> None:
    if on_gpu:
        check_nodes(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def capture_workers(config: RunConfig, folder: Path, layer_ids: tuple[int, ...], group: PlacementGroup | None) -> WorkerPool:
    """The run's capture workers, by name: whoever comes first starts them, all others find them.

    group: their places. Under torchrun nobody has taken any, and the ranks hold nothing of Ray's.
    """
    connect(config)
    share = worker_share(config, resolve_device(config.model.device).type == "cuda")
    options = {"num_cpus": share["CPU"], "num_gpus": share.get("GPU", 0), "max_concurrency": REQUESTS}
    options |= {"max_restarts": -1, "get_if_exists": True}
    actor, arguments = ray.remote(CaptureWorker), (config.model_dump_json(), os.getcwd(), str(folder), layer_ids)
    workers = []
    for i in range(config.inference.num_workers):
        place = "DEFAULT" if group is None else PlacementGroupSchedulingStrategy(group, i)
        worker = actor.options(name=f"{run_name(config)}-capture-{i}", scheduling_strategy=place, **options)
        workers.append(worker.remote(*arguments))
    return WorkerPool(workers, open_transfer(config, sends=False))


def from_workers(
    config: RunConfig, method: Method, samples: int, device: torch.device, group: PlacementGroup | None = None
) -> tuple[Source, Capture]:
    """The run's capture workers, for a rank whose plan has so many samples."""
    workers = capture_workers(config, method.target.folder, method.layer_ids, group)
    width = method.target.config.hidden_size * len(method.layer_ids)
    remote = RemoteCapture(workers, config, method.layer_ids, width, samples, device)
    return remote, remote
