"""The root config: every mistake is one sentence that names the field; reading it needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from torchspec.config import RunConfig, load_config
from torchspec.errors import UserError
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.eagle3.config import Eagle3Config
from torchspec.methods.registry import METHODS

MINIMAL = {"output_dir": "out", "model": {"target_model_path": "target"}, "dataset": {"train_data_path": "chats.jsonl"}}


@pytest.fixture
def file(tmp_path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(MINIMAL))
    return str(path)


def refused(file: str, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(file, list(overrides))
    sentence = str(error.value)
    assert "\n" not in sentence and len(sentence) < 400
    return sentence


def test_a_minimal_file_and_its_overrides_become_the_config(file):
    overrides = ["training.learning_rate=0.001", "draft.target_layer_ids=[1,3]", "dataset.thinking=false", "output_dir=there"]
    config = load_config(file, overrides)
    assert (config.training.learning_rate, config.draft.target_layer_ids, config.output_dir) == (1e-3, (1, 3), "there")
    assert config.dataset.thinking is False and config.dataset.train_data_path == "chats.jsonl"
    assert config == RunConfig.model_validate_json(config.model_dump_json())  # as run.json stores it


def test_the_method_decides_which_keys_the_draft_section_has(file):
    config = load_config(file, ["draft.method=eagle3", "draft.ttt_length=3", "draft.loss_step_decay=1"])
    assert (type(config.draft), config.draft.ttt_length, config.draft.loss_step_decay) == (Eagle3Config, 3, 1.0)
    assert config == RunConfig.model_validate_json(config.model_dump_json())
    assert isinstance(load_config(file, ["draft.num_layers=2"]).draft, DFlashConfig)  # where none is named
    for method, key in (("eagle3", "block_size"), ("dflash", "ttt_length")):
        assert f"draft.{key} is not a known key" in refused(file, f"draft.method={method}", f"draft.{key}=4")
    assert f"draft.method='eagle9' is refused: choose one of {', '.join(METHODS)}" in refused(file, "draft.method=eagle9")


@pytest.mark.parametrize(
    "override", ["ttt_length=0", "loss=ce", "loss_step_decay=0", "loss_step_decay=1.5", "draft_vocab_size=0", "norm_output=yes please"]
)
def test_eagle3s_values_are_checked(file, override):
    assert f"draft.{override.split('=')[0]}=" in refused(file, "draft.method=eagle3", f"draft.{override}")


def test_a_later_override_wins_and_none_gives_a_default_back(file):
    config = load_config(file, ["training.seed=1", "training.seed=2", "draft.target_layer_ids=null"])
    assert config.training.seed == 2 and config.draft.target_layer_ids is None


def test_a_value_may_hold_an_equals_sign(file):
    assert load_config(file, ["output_dir=runs/lr=3"]).output_dir == "runs/lr=3"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("draft.blok_size=4", "draft.blok_size is not a known key, did you mean block_size?"),
        ("trainig.seed=1", "trainig is not a known key, did you mean training?"),
        ("training.zebra=1", "training.zebra is not a known key, remove it or correct its spelling"),
        ("training.max_length=1", "training.max_length is not a known key, it is one of dataset"),
        ("draft.ttt_length=1", "draft.ttt_length is not a known key, it is one of draft (method: eagle3)"),
        ("inference.mooncake.protocl=tcp", "inference.mooncake.protocl is not a known key, did you mean protocol?"),
        ("training.learning_rate=fast", "training.learning_rate='fast' is refused: "),
        ("training.learning_rate=0", "training.learning_rate=0 is refused: "),
        ("training.micro_batch_size=1.5", "training.micro_batch_size=1.5 is refused: "),
        ("training.micro_batch_size=true", "training.micro_batch_size=True is refused: "),
        ("training.num_epochs=0", "training.num_epochs=0 is refused: "),
        ("training.seed=-1", "training.seed=-1 is refused: "),
        (
            "training.lr_decay_style=wsd",
            "training.lr_decay_style='wsd' is refused: Input should be 'WSD', 'cosine' or 'constant', did you mean WSD?",
        ),
        ("training.optimizer=sgd", "training.optimizer='sgd' is refused: "),
        ("training.warmup_ratio=1.5", "training.warmup_ratio=1.5 is refused: "),
        ("draft.block_size=1", "draft.block_size=1 is refused: "),
        ("draft.method=eagel3", f"draft.method='eagel3' is refused: choose one of {', '.join(METHODS)}, did you mean eagle3?"),
        ("draft.target_layer_ids=3", "draft.target_layer_ids=3 is refused: "),
        ("draft.target_layer_ids=[1,a]", "draft.target_layer_ids.1='a' is refused: "),
        ("model.dtype=float16", "model.dtype='float16' is refused: "),
        ("model.target_model_path=7", "model.target_model_path=7 is refused: "),
        ("output_dir=null", "output_dir=None is refused: "),
        ("training=5", "training=5 is refused: "),
        ("training.min_lr=1.0", "training: min_lr=1.0 is above learning_rate=0.0006; lower it"),
        ("training.muon_rows=192", "training: muon_rows=192 is read by optimizer=muon alone; leave it out, or set optimizer=muon"),
        ("training.save_interval=", "training.save_interval="),
    ],
)
def test_a_wrong_override_is_one_sentence_with_the_field(file, override, sentence):
    assert f"config {file!r}: {sentence}" in refused(file, override)


LINES = """output_dir: out
model:
  target_model_path: target
dataset: {train_data_path: chats.jsonl}

draft:
  blok_size: 4
training:
  seed: -1
"""


def test_a_mistake_in_the_file_is_told_with_its_line_and_one_of_the_command_line_without(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(LINES)
    assert "draft.blok_size (line 7) is not a known key" in refused(str(path))
    assert "training.seed=-1 (line 9) is refused" in refused(str(path))
    assert "training.seed=-2 is refused" in refused(str(path), "training.seed=-2")
    path.write_text(LINES.replace("  target_model_path: target\n", "  dtype: float32\n"))
    assert "model.target_model_path (line 2) is missing" in refused(str(path))


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("\tseed: 1", "line 9: found character that cannot start any token"),
        ("  seed: 1\n  seed: 2", "line 10: found duplicate key seed"),
        ("  seed: [1", "line 10: did not find expected"),
    ],
)
def test_yaml_that_cannot_be_read_is_told_with_its_line(tmp_path, written, sentence):
    path = tmp_path / "run.yaml"
    path.write_text(LINES.replace("  seed: -1", written))
    assert f"config {str(path)!r} cannot be read: {sentence}" in refused(str(path))


def test_phases_that_do_not_fit_into_the_run_are_refused(file):
    wsd = ["training.lr_decay_style=WSD", "training.warmup_ratio=0.5"]
    assert "warmup_ratio=0.5 and wsd_decay_ratio=0.6 add up to more than 1" in refused(file, *wsd, "training.wsd_decay_ratio=0.6")
    load_config(file, [*wsd, "training.wsd_decay_ratio=0.5"])
    load_config(file, ["training.warmup_ratio=0.5", "training.wsd_decay_ratio=0.6"])  # cosine does not read the ratio


def test_several_mistakes_are_told_at_once(file):
    sentence = refused(file, "training.seed=-1", "draft.block_size=1")
    assert "training.seed=-1" in sentence and "draft.block_size=1" in sentence


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.adam_beta2", "1.0"),  # AdamW demands less than one
        ("training.learning_rate", ".inf"),
        ("training.learning_rate", ".nan"),
        ("training.weight_decay", ".inf"),
        ("training.min_lr", ".nan"),
        ("draft.loss_decay_gamma", ".nan"),
        ("inference.cache_gib", ".inf"),
    ],
)
def test_numbers_that_would_fail_or_spoil_the_run_later_are_refused_now(file, key, value):
    assert f"{key}=" in refused(file, f"{key}={value}")


SGLANG = ["inference.inference_engine_type=sglang"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["inference.transfer=mooncake"], "transfer=mooncake concerns capture workers"),
        (["inference.transfer_dtype=fp8"], "transfer_dtype concerns capture workers"),
        (["inference.server_url=http://here:1"], "is for inference_engine_type: sglang or vllm; leave it out for hf"),
        (
            [*SGLANG, "inference.server_url=[http://a:1]", "inference.num_workers=2"],
            "asks servers itself; leave num_workers=2 out",
        ),
        ([*SGLANG, "inference.server_url=[]"], "names no server"),
        ([*SGLANG, "inference.server_url=[http://a:1,http://a:1]"], "names a server twice"),
        ([*SGLANG, "inference.server_url=[http://a:1,b:2]"], "server_url='b:2' is no URL of a server, like http://node7:30000"),
        ([*SGLANG, "inference.server_url=http://here"], "server_url='http://here' is no URL of a server"),
        (["inference.memory_fraction=0.5"], "memory_fraction=0.5 is for an engine that the run starts; leave it out with inference_engine"),
        (["inference.inference_engine_type=vllm", "inference.memory_fraction=1"], "memory_fraction=1 is refused: Input should be less"),
        (
            [*SGLANG, "inference.server_url=http://here:1", "inference.memory_fraction=0.5"],
            "memory_fraction=0.5 is for an engine that the run starts; leave it out with server_url='http://here:1'",
        ),
        (["inference.num_workers=1", "inference.cache_gib=1"], "cache_gib=1 keeps features in the trainer's process"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(file, settings, sentence):
    assert sentence in refused(file, *settings)


@pytest.mark.parametrize("section", ["output_dir", "model", "dataset"])
def test_a_missing_key_is_named_with_the_way_to_set_it(tmp_path, section):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({key: value for key, value in MINIMAL.items() if key != section}))
    assert f"{section} is missing, set it in the file or as {section}=VALUE" in refused(str(path))


def test_a_missing_key_inside_a_section_is_named_with_its_section(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({**MINIMAL, "model": {"dtype": "float32"}}))
    assert "model.target_model_path (line 1) is missing" in refused(str(path))


def test_a_mandatory_value_that_was_left_open_is_missing(tmp_path):
    """OmegaConf's ??? says: to be given on the command line."""
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({**MINIMAL, "output_dir": "???"}))
    assert load_config(str(path), ["output_dir=here"]).output_dir == "here"
    assert "output_dir" in refused(str(path))


@pytest.mark.parametrize("override", ["seed", "training.seed", "--seed 3", ""])
def test_an_override_without_a_value_is_named(file, override):
    assert refused(file, override) == f"override {override!r} is not of the form section.key=value"


@pytest.mark.parametrize(
    "override", ["=5", ".=5", "training.=5", "training..seed=5", "training.seed.deep=5", "output_dir=${nowhere}", "output_dir=["]
)
def test_an_override_that_cannot_be_read_is_one_sentence(file, override):
    assert refused(file, override).startswith("config ")


def test_a_missing_file_is_named_with_the_folder_it_was_looked_for_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("nowhere.yaml") == f"config 'nowhere.yaml': no such file (looked for {tmp_path.resolve() / 'nowhere.yaml'})"


@pytest.mark.parametrize(
    "content", [b"", b"- a\n- b\n", b"just words", b"a: [1", b"a: 1\na: 2\n", b"\x00\x01\x02", b"output_dir: \xff\xfe"],
    ids=["empty", "list", "words", "cut", "twice", "binary", "not utf-8"],
)  # fmt: skip
def test_a_file_that_is_no_mapping_is_one_sentence(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    assert refused(str(path)).startswith(f"config {str(path)!r}")


def test_a_folder_is_no_config(tmp_path):
    assert "no such file" in refused(str(tmp_path))


def test_the_config_is_frozen(file):
    with pytest.raises(ValidationError, match="frozen"):
        load_config(file, []).training.seed = 3


def test_what_determines_the_weights_is_resumable_and_what_does_not_is_not(file):
    fields = load_config(file, []).resumable_fields()
    free = ["training.save_interval=7", "training.max_checkpoints=9", "training.prefetch_depth=2", "output_dir=x"]
    free += ["model.target_model_path=moved", "dataset.train_data_path=moved", "inference.replay_dir=x", "evaluation.interval=7"]
    fixed = ["training.seed=1", "draft.block_size=8", "dataset.max_length=100", "model.dtype=float32"]
    fixed += ["inference.inference_engine_type=vllm", "evaluation.max_samples=7"]
    for override in free + fixed:
        assert (load_config(file, [override]).resumable_fields() == fields) == (override in free)


def test_sglang_has_one_name_and_its_other_one_is_understood(file):
    config = load_config(file, ["inference.inference_engine_type=sgl", "evaluation.served=sgl", "dataset.eval_data_path=x.jsonl"])
    assert (config.inference.inference_engine_type, config.evaluation.served) == ("sglang", "sglang")
    assert config == load_config(file, [*SGLANG, "evaluation.served=sglang", "dataset.eval_data_path=x.jsonl"])
    unknown = refused(file, "inference.inference_engine_type=vlm")
    assert "inference.inference_engine_type: 'vlm' is no engine, choose one of hf, sglang, vllm, did you mean vllm?" in unknown


def test_reading_a_config_imports_no_torch(file):
    code = (
        "import sys; from torchspec.config import load_config; load_config(sys.argv[1], ['training.seed=3']);"
        "heavy = {'torch', 'transformers', 'datasets', 'ray', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60)
    assert result.returncode == 0, result.stderr


def test_mix_and_beginning_are_checked_at_once(file):
    assert load_config(file, ["dataset.mix={a.jsonl: 1, b/c.jsonl: 0.5}"]).dataset.mix == {"a.jsonl": 1.0, "b/c.jsonl": 0.5}
    assert "dataset.mix.a.jsonl=0 is refused" in refused(file, "dataset.mix={a.jsonl: 0}")
    assert "name every source once" in refused(file, "dataset.mix={chats.jsonl: 1}")
    assert "continual_training=true needs load_path" in refused(file, "training.continual_training=true")
