"""The optimizer step of the loop: the clipped gradient of the mean, in one pass; a gradient that is not finite ends the run."""

import copy

import pytest
import torch

from tests.unit.tiny import HIDDEN, LAYERS, lively, random_features
from tests.updates import assert_same_weights
from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.training.build import Run
from torchspec.training.checkpoint import TrainState
from torchspec.training.distributed import World
from torchspec.training.log import RunLog
from torchspec.training.loop import Window
from torchspec.training.optim import build_optimizers
from torchspec.training.stream import pack

BATCHES = [pack([random_features("0001111111", i), random_features("00111111", i + 10)], epoch=0) for i in range(2)]


@pytest.fixture
def run(tiny_method) -> Run:
    config = RunConfig(
        output_dir="unused", model={"target_model_path": "none"}, dataset={"train_data_path": "none"}, training={"max_grad_norm": 0.05}
    )
    model = lively(tiny_method.skeleton())
    optimizers = build_optimizers(model, config.training)
    return Run(config, None, None, [], frozenset(), tiny_method, model, model, optimizers, None, None, World(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("limit", [0.05, 1e6])
def test_an_update_is_adamw_on_the_clipped_gradient_of_the_mean(run, limit):
    run.config = run.config.model_copy(update={"training": run.config.training.model_copy(update={"max_grad_norm": limit})})
    theirs, window = copy.deepcopy(run.model), Window()
    (adamw,) = build_optimizers(theirs, run.config.training)
    sums = [run.method.loss(theirs, batch, 0)[:2] for batch in BATCHES]
    (sum(loss for loss, _ in sums) / sum(weight for _, weight in sums)).backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    adamw.param_groups[0]["lr"] = adamw.param_groups[1]["lr"] = 1e-3
    adamw.step()
    for batch in BATCHES:
        window.backward(run, batch, 0, 0.0)
    window.update(run, 1e-3)
    assert float(norm) > 0.05  # the small limit clips
    torch.testing.assert_close(window.grad_norm, norm)
    assert_same_weights(dict(run.model.named_parameters()), dict(theirs.named_parameters()), 1e-3)


@pytest.mark.parametrize("planted", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_told_before_anything_is_saved_though_later_ones_are(run, planted):
    """The step does not wait to look: the log does, and comes before every checkpoint."""
    window = Window()
    for step in range(2):
        window.backward(run, BATCHES[step], 0, 0.0)
        if step == 0:
            run.model.fc.weight.grad[0, 0] = planted
        window.update(run, 0.0)
    with pytest.raises(UserError, match="the gradient became infinite or NaN in the steps up to 7.*lower training.learning_rate"):
        window.log(None, TrainState(step=7), run, {})


def test_without_a_supervised_token_the_gradient_is_zero_and_weights_stay(run):
    before, window = copy.deepcopy(run.model), Window()
    window.backward(run, pack([random_features("000100", width=HIDDEN * len(LAYERS))], epoch=0), 0, 0.0)
    window.update(run, 1e-3)
    assert float(window.grad_norm) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), before.parameters(), strict=True))


def test_a_diverging_run_says_so_once(run, tmp_path, capsys):
    config = run.config.model_copy(update={"output_dir": str(tmp_path)})
    log = RunLog(config, 0, 100, is_main=True)
    row = {"learning_rate": 1e-3, "wait": 0.0, "bytes_per_s": 0.0}
    for step, loss in enumerate([3.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0], start=1):
        log.train(step, loss, 1.0, 100.0, row)
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert warning.startswith(
        "WARNING: the run diverges: the loss is 4.000, above the 3.000 that it began with; lower training.learning_rate"
    )
    resumed = RunLog(config, 5, 100, is_main=True)
    assert [row["step"] for row in resumed.rows] == [1, 2, 3, 4, 5]
