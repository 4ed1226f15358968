"""Where a run begins. Oracle: a run that was never stopped, the checkpoint's own weights, and counting the epochs."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import EAGLE3, VOCABULARY, recipe, timeless_metrics, write_chats, write_tiny_target
from torchspec.config import load_config
from torchspec.decode.pair import load_pair
from torchspec.errors import UserError
from torchspec.export.hf import export_checkpoint
from torchspec.training.build import build
from torchspec.training.distributed import World
from torchspec.training.loop import train
from torchspec.training.start import START, begin
from torchspec.training.stream import Beside
from torchspec.training.tensors import read_weights

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def work(tmp_path_factory, target_folder) -> Path:
    """A run of three epochs of 8 micro-batches, with a checkpoint after each, and its export."""
    folder = tmp_path_factory.mktemp("start")
    target = write_tiny_target(folder / "target", target_folder)
    train_file, held_out = write_chats(folder / "train.jsonl", 16), write_chats(folder / "heldout.jsonl", 2, first=100)
    recipe(folder / "run.yaml", target, train_file, held_out, num_epochs=3, save_interval=1000, max_checkpoints=9, save_per_epoch=True)
    train(load_config(str(folder / "run.yaml"), ["evaluation.interval=1000"]))
    export_checkpoint(folder / "run" / "checkpoints" / "iter_0000024", folder / "draft")
    return folder


def config(work: Path, out: str, *overrides: str):
    return load_config(str(work / "run.yaml"), [f"output_dir={work / out}", "evaluation.interval=1000", *overrides])


def refused(work: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        begin(build(config(work, "refused", *overrides), ALONE))
    return str(error.value)


def test_a_checkpoint_stands_at_the_end_of_every_epoch(work):
    assert sorted(p.name for p in (work / "run" / "checkpoints").glob("iter_*")) == ["iter_0000008", "iter_0000016", "iter_0000024"]


def test_a_cpu_of_several_cores_captures_beside_the_training_and_resumes_bitwise(work):
    """With two threads each side has one, and they are given back; killed after an epoch, the run ends with the same weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert isinstance(build(config(work, "beside"), ALONE).source, Beside) and torch.get_num_threads() == 2
        train(config(work, "beside"))
        shutil.copytree(work / "beside" / "checkpoints" / "iter_0000016", work / "again" / "checkpoints" / "iter_0000016")
        assert train(config(work, "again")).step == 24 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    whole, again, alone = (read_weights(work / out / "checkpoints" / "iter_0000024") for out in ("beside", "again", "run"))
    assert all(torch.equal(whole[name], again[name]) and torch.equal(whole[name], alone[name]) for name in whole)


def test_another_runs_checkpoint_is_gone_on_with_bitwise(work):
    """Elsewhere, from the second epoch on: the third epoch's lines and the last weights are those of the run that never stopped."""
    source = work / "run" / "checkpoints" / "iter_0000016"
    state = train(config(work, "gone_on", f"training.load_path={source}"))
    assert state.step == 24
    ours, theirs = (timeless_metrics(work / out) for out in ("gone_on", "run"))
    assert ours == [row for row in theirs if row["step"] > 16] and len(ours) > 3
    ours, theirs = (read_weights(work / out / "checkpoints" / "iter_0000024") for out in ("gone_on", "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("source", ["run/checkpoints/iter_0000008", "run/checkpoints", "draft"])
def test_continual_training_takes_the_weights_alone(work, source):
    run = build(config(work, "fresh", f"training.load_path={work / source}", "training.continual_training=true"), ALONE)
    state = begin(run)
    assert (state.step, state.tokens, state.best_tau) == (0, 0, 0.0)
    assert not any(optimizer.state for optimizer in run.optimizers)
    if source == "draft":
        expected = load_file(work / "draft" / "model.safetensors")
    else:
        expected = read_weights(work / "run" / "checkpoints" / ("iter_0000008" if source.endswith("8") else "iter_0000024"))
    found = dict(run.model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == torch.float32 for name in expected)


def test_a_pruned_draft_goes_on_with_the_vocabulary_of_its_new_data(work):
    """EAGLE-3's weights are taken over bitwise; which of the target's rows it proposes is counted in the run's own data."""
    for folder in ("first", "then"):
        (work / folder).mkdir()
    chats = [write_chats(work / "first" / "train.jsonl", 16), write_chats(work / "then" / "train.jsonl", 16)]
    chats[1].write_text(chats[0].read_text().replace("something", "another sentence"))
    first, then = (recipe(file.with_name("run.yaml"), work / "target", file, work / "heldout.jsonl", EAGLE3) for file in chats)
    train(load_config(str(first), ["evaluation.interval=1000"]))
    source = first.with_name("run") / "checkpoints" / "iter_0000008"
    onward = [f"training.load_path={source}", "training.continual_training=true"]
    run = build(load_config(str(then), onward), ALONE)
    own = run.model.d2t.clone()
    assert begin(run).step == 0
    expected = read_weights(source)
    assert all(torch.equal(value, expected[name]) for name, value in run.model.named_parameters())
    assert torch.equal(run.model.d2t, own) and not torch.equal(own, expected["d2t"])


def of_speculators(folder: Path, draft: Path) -> Path:
    """The exported draft as that project would have written it: keys by hand, its names, and an embedding of its own."""
    ours = json.loads((draft / "config.json").read_text())
    layers = {key: ours[key] for key in (
        "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "attention_bias", "layer_types",
    )}  # fmt: skip
    values = {
        "speculators_model_type": "dflash", "architectures": ["DFlashSpeculator"], "transformer_layer_config": layers, "block_size": 4,
        "mask_token_id": ours["dflash_config"]["mask_token_id"], "aux_hidden_state_layer_ids": [2, 4], "draft_vocab_size": VOCABULARY,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(load_file(draft / "model.safetensors"), folder / "model.safetensors")
    return folder


def on_the_hub(work: Path, monkeypatch, name: str) -> Path:
    """A draft of another project where the hub's client keeps what it has fetched. -> its snapshot"""
    cache = work / "hub" / f"models--{name.replace('/', '--')}"
    if not cache.exists():
        of_speculators(cache / "snapshots" / "0123abc", work / "draft")
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(work / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache / "snapshots" / "0123abc"


def test_a_draft_of_another_project_is_begun_with_by_its_hub_id(work, monkeypatch):
    """The weights are the file's bit for bit, and the first loss is the one that the draft has as it is loaded for serving."""
    source = on_the_hub(work, monkeypatch, "owner/name")
    options = ("training.load_path=owner/name", "training.continual_training=true", "training.max_steps=1", "tracking.log_interval=1")
    run = build(config(work, "hub_id", *options), ALONE)
    begin(run)
    found, expected = dict(run.model.named_parameters()), load_file(source / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    account = json.loads((work / "hub_id" / START).read_text())
    assert account == {
        "load_path": "owner/name", "source": str(source), "method": "dflash", "taken": list(found), "left": {}, "fresh": [], "differs": {},
        "share": 1.0,
    }  # fmt: skip
    batch, served = next(iter(run.stream(0))), load_pair(source, str(work / "target"), "float32", "cpu", False).model
    loss, weight, _ = run.method.loss(served, batch, run.config.training.seed)
    train(run.config)
    (first,) = (row["loss"] for row in timeless_metrics(work / "hub_id") if row["kind"] == "train")
    assert first == pytest.approx(float(loss / weight), rel=1e-5)  # products of packed matrices add in another order
    fresh = build(config(work, "fresh_one"), ALONE)
    loss, weight, _ = fresh.method.loss(fresh.compute, batch, run.config.training.seed)
    assert float(loss / weight) > 1.01 * first


@pytest.mark.parametrize("source", ["run/checkpoints", "draft"])
def test_what_does_not_fit_starts_as_it_would_have_without(work, source, capsys):
    """Another pair of captured layers: fc reads other features, though its shape is the same."""
    options = [f"training.load_path={work / source}", "training.continual_training=true"]
    other = ["draft.target_layer_ids=[0,2]", "draft.block_size=8"]
    run, fresh = (build(config(work, "partly", *o, *other), ALONE) for o in (options, []))
    begin(run)
    found, built = (dict(r.model.named_parameters()) for r in (run, fresh))
    weights = load_file(work / "draft" / "model.safetensors")  # of the very checkpoint, in float32
    assert all(torch.equal(found[name], (built if name == "fc.weight" else weights)[name]) for name in found)
    said = capsys.readouterr().out
    assert "  not taken: fc.weight (dflash_config.target_layer_ids: [1, 3] there, [0, 2] in this run)\n" in said
    assert "  starts at random: fc.weight\n" in said and "computed otherwise" not in said
    assert json.loads((work / "partly" / START).read_text())["fresh"] == ["fc.weight"]
    begin(fresh)
    assert not (work / "partly" / START).exists()  # a run that begins at zero says nothing of an earlier one


def test_an_own_checkpoint_comes_before_load_path(work):
    """A continual run that was killed goes on with itself, even where what it began with is gone."""
    shutil.copytree(work / "run", work / "killed")
    run = build(config(work, "killed", "training.load_path=gone", "training.continual_training=true"), ALONE)
    assert begin(run).step == 24


def test_a_run_goes_on_with_what_its_paths_hold_and_not_with_their_names(work):
    """Data and target may move; other contents under the old names are refused."""
    here = work / "contents"
    shutil.copytree(work / "run", here / "run")
    files = {name: shutil.copy(work / f"{name}.jsonl", here / f"{name}.jsonl") for name in ("train", "heldout")}
    shutil.copytree(work / "target", here / "target")
    moved = [f"dataset.train_data_path={files['train']}", f"dataset.eval_data_path={files['heldout']}"]
    moved.append(f"model.target_model_path={here / 'target'}")
    run = config(work, "contents/run", *moved)
    assert begin(build(run, ALONE)).step == 24
    for file, first, name in ((here / "train.jsonl", 300, "training data"), (here / "heldout.jsonl", 400, "held-out data")):
        before = file.read_bytes()
        write_chats(file, 16, first)
        with pytest.raises(UserError, match=f"made from other contents .tokens and loss masks of the {name}: "):
            begin(build(run, ALONE))
        file.write_bytes(before)
    with (here / "target" / "generation_config.json").open("a") as settings:
        settings.write(" ")
    with pytest.raises(UserError, match="made from other contents .files of the target: "):
        begin(build(run, ALONE))


def test_sources_that_cannot_be_begun_with(work, monkeypatch):
    monkeypatch.chdir(work)
    for source in ("nowhere", "draft", "owner/name"):
        assert "set training.continual_training=true" in refused(work, f"training.load_path={source}")
    weights = "training.continual_training=true"
    nowhere = refused(work, "training.load_path=nowhere", weights)
    assert (
        "training.load_path='nowhere' is no checkpoint (no state.json)" in nowhere and f"{work / 'nowhere'} holds no config.json" in nowhere
    )
    deeper = refused(work, "training.load_path=draft", weights, "draft.num_layers=6", "draft.target_layer_ids=[1,3]")
    assert deeper.startswith("training.load_path='draft': this dflash draft fills ") and "num_hidden_layers: 2 there, 6 in" in deeper
    for source in ("draft", "run/checkpoints/iter_0000024"):
        values = json.loads((work / source / "config.json").read_text()) | {"num_target_layers": 7}
        shutil.copytree(work / source, work / "made_for_another", dirs_exist_ok=True)
        (work / "made_for_another" / "config.json").write_text(json.dumps(values))
        assert "and 7 layers, but" in refused(work, "training.load_path=made_for_another", weights)
        shutil.rmtree(work / "made_for_another")
    assert not (work / "refused" / START).exists()
    assert "made by a different run" in refused(work, "training.load_path=run/checkpoints", "training.learning_rate=0.002")


def test_a_mix_trains_and_reports_both_sources(work):
    """12 samples of the second source, three quarters of them per epoch: 16 + 9 samples in batches of two, three epochs."""
    second = write_chats(work / "second.jsonl", 12, first=500)
    state = train(
        config(work, "mixed", f"dataset.mix={{{second}: 0.75}}", "dataset.shuffle_dataset=false", "training.save_per_epoch=false")
    )
    assert state.step == 3 * 13
    facts = json.loads((work / "mixed" / "checkpoints" / "iter_0000039" / "data.json").read_text())
    assert facts["samples"] == 28
    with pytest.raises(UserError, match="very samples of a training source"):
        train(config(work, "leak", f"dataset.mix={{{work / 'heldout.jsonl'}: 1}}"))
