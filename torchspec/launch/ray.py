"""A run on several devices: capture workers and trainer ranks, placed and supervised by Ray.

      capture worker 0 .. C-1   (Ray actors, restarted by Ray)        target forwards
              |  features, as object references
      trainer rank 0 .. T-1     (Ray Train, restarted from the latest checkpoint)    `train`, as under torchrun

There is no controller: each rank asks the workers for the samples of its own plan.
"""

import os
from pathlib import Path

import ray
import torch
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from torchspec.capture.base import Capture
from torchspec.config import RunConfig
from torchspec.errors import Stopped, UserError
from torchspec.files.writing import writing
from torchspec.launch.placement import RANK_CPUS, WORKER_CPUS, check_nodes
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
    share = _share(1, RANK_CPUS, on_gpu)
    check_resources(config, on_gpu)
    reason = _reason_file(config)
    reason.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"config": config.model_dump_json(), "folder": os.getcwd(), "serve": serve},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.training.num_ranks, use_gpu=on_gpu, resources_per_worker=share, placement_strategy="PACK"
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
    try:
        train_together(config, from_workers if config.inference.num_workers else supply(config), arguments["serve"])
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


def _share(gpus: int, cpus: int, on_gpu: bool) -> dict[str, float]:
    """Resources of one worker or rank. Without GPUs several share a core: the demand is then a matter of taste, not of placement."""
    return {"GPU": gpus, "CPU": cpus} if on_gpu else {"CPU": 0.01}


def check_resources(config: RunConfig, on_gpu: bool) -> None:
    if on_gpu:
        check_nodes(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def capture_workers(config: RunConfig, folder: Path, layer_ids: tuple[int, ...]) -> WorkerPool:
    """The run's capture workers, by name: whoever comes first starts them, all others find them."""
    connect(config)
    on_gpu = resolve_device(config.model.device).type == "cuda"
    share = _share(config.inference.gpus_per_worker, WORKER_CPUS, on_gpu)
    options = {"num_cpus": share["CPU"], "num_gpus": share.get("GPU", 0), "max_concurrency": REQUESTS}
    options |= {"max_restarts": -1, "get_if_exists": True}
    actor, arguments = ray.remote(CaptureWorker), (config.model_dump_json(), os.getcwd(), str(folder), layer_ids)
    names = [f"{run_name(config)}-capture-{i}" for i in range(config.inference.num_workers)]
    workers = [actor.options(name=name, **options).remote(*arguments) for name in names]
    return WorkerPool(workers, open_transfer(config, sends=False))


def from_workers(config: RunConfig, method: Method, samples: int, device: torch.device) -> tuple[Source, Capture]:
    """The run's capture workers, for a rank whose plan has so many samples."""
    workers, width = (
        capture_workers(config, method.target.folder, method.layer_ids),
        method.target.config.hidden_size * len(method.layer_ids),
    )
    remote = RemoteCapture(workers, config, method.layer_ids, width, samples, device)
    return remote, remote
