"""A run on several devices: capture workers and trainer ranks, placed and supervised by Ray.

      capture worker 0 .. C-1   (Ray actors, restarted by Ray)        target forwards
              |  features, as object references
      trainer rank 0 .. T-1     (Ray Train, restarted from the latest checkpoint)    `train`, as under torchrun

There is no controller: each rank asks the workers for the samples of its own plan.
"""

import os
from functools import partial
from pathlib import Path

import ray
import torch
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from torchspec.capture.base import Capture
from torchspec.config import RunConfig
from torchspec.errors import Stopped, UserError
from torchspec.files.writing import writing
from torchspec.launch.placement import check_nodes
from torchspec.launch.places import rank_share, take_places, worker_share
from torchspec.launch.remote import RemoteCapture
from torchspec.launch.servers import supply
from torchspec.launch.workers import REQUESTS, CaptureWorker, WorkerPool
from torchspec.methods.base import Method
from torchspec.nn.device import resolve_device
from torchspec.training.log import METRICS
from torchspec.training.loop import Serve, kept, train_together
from torchspec.training.stream import Source
from torchspec.transfer.base import open_transfer
from torchspec.transfer.mooncake_master import run_master

NAMESPACE = "torchspec"


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
    reason = _reason_file(config)
    reason.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"config": config.model_dump_json(), "folder": os.getcwd(), "serve": serve, "group": group},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.training.num_ranks, use_gpu=on_gpu, resources_per_worker=rank_share(on_gpu), placement_strategy="PACK"
        ),
        run_config=RayRunConfig(
            name=run_name(config),
            storage_path=str(reason.parent),
            failure_config=FailureConfig(max_failures=config.cluster.max_restarts),
        ),
    )
    try:
        trainer.fit()
    except SystemExit:  # Ray's own answer to Ctrl-C, once it has ended the ranks
        raise Stopped from None
    except TrainingFailedError:
        if not reason.is_file():
            raise
    if reason.is_file():
        raise UserError(reason.read_text())


def _rank(arguments: dict) -> None:
    """One trainer rank. Ranks that failed are started again; where one of them told the user why, they have nothing left to do."""
    os.chdir(arguments["folder"])  # Ray Train runs its workers elsewhere, and paths in a config are relative to where it was started
    config = RunConfig.model_validate_json(arguments["config"])
    reason = _reason_file(config)
    if reason.is_file():
        return
    group = arguments["group"]
    try:
        train_together(config, supply(config) if group is None else partial(from_workers, group=group), arguments["serve"])
    except UserError as error:
        reason.write_text(str(error))
        raise


def _reason_file(config: RunConfig) -> Path:
    folder = Path(config.output_dir).resolve() / "ray"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "stopped_because.txt"


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
