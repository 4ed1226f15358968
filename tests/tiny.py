"""A tiny random Llama with the frequent tokens of a real tokenizer: for shapes, parity and plumbing; never as proof that training works."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

VOCABULARY = 4096


@cache
def tokenizer_files(whole: Path) -> dict[str, bytes]:
    """The whole one's first tokens and its template. It splits as the whole one does and loads in a hundredth of the time."""
    with TemporaryDirectory() as scratch:
        AutoTokenizer.from_pretrained(whole).save_pretrained(scratch)
        files = {file.name: file.read_bytes() for file in Path(scratch).iterdir()}
    tokenizer = json.loads(files["tokenizer.json"])
    kept = {token: i for token, i in tokenizer["model"]["vocab"].items() if i < VOCABULARY}
    merges = [pair for pair in tokenizer["model"]["merges"] if {*pair, "".join(pair)} <= kept.keys()]
    tokenizer["model"] |= {"vocab": kept, "merges": merges}
    return files | {"tokenizer.json": json.dumps(tokenizer).encode()}


def write_tokenizer(folder: Path, whole: Path) -> Path:
    for name, content in tokenizer_files(whole).items():
        (folder / name).write_bytes(content)
    return folder


def write_tiny_target(folder: Path, tokenizer_folder: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=1024, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, dtype="float32",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    return write_tokenizer(folder, tokenizer_folder)


def write_chats(file: Path, count: int, first: int = 0) -> Path:
    """Conversations that differ from one another; the words do not matter."""
    rows = []
    for i in range(first, first + count):
        answer = " ".join(f"{(i * 7 + j) % 31} and {(i + j * j) % 17} make something." for j in range(6))
        question = f"Question number {i}, please."
        rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def timeless_metrics(out: Path) -> list[dict]:
    """Lines of metrics.jsonl without what a clock decides."""
    clock = ("seconds", "tokens_per_second", "wait", "captured_tok_s", "train_tok_s", "bytes_per_s", "queued")
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


DFLASH = {"num_layers": 2, "block_size": 4, "num_anchors": 8, "loss_negatives": 64}
DFLASH2 = {**DFLASH, "method": "dflash2", "conv_group_size": 8, "selector_rank": 8, "selector_top_k": 4}
LILICORR = {"method": "lilicorr", **DFLASH, "lilicorr_candidate_topk": 4, "lilicorr_hidden_size": 32, "lilicorr_num_heads": 4}
DOMINO = {"method": "domino", **DFLASH, "emb_dim": 16, "gru_hidden_dim": 16}
DSPARK = {**DFLASH, "method": "dspark", "block_size": 3, "markov_rank": 8, "markov_head_type": "rnn"}
# without rounds that read the draft's own tokens: these are largest logits, which a rounding decides between ranks
XPRESS = {**DFLASH, "method": "xpress", "xpress_rank": 8, "xpress_mlp_hidden": 8, "consistency_loss": 0}
EAGLE3 = {"method": "eagle3", "ttt_length": 3, "num_anchors": 8, "target_layer_ids": [1, 3], "draft_vocab_size": 64}

PEAGLE = {"method": "peagle", "num_layers": 2, "num_depths": 3, "num_anchors": 8, "target_layer_ids": [1, 3], "draft_vocab_size": 64}


def recipe(file: Path, target: Path, train: Path, held_out: Path, draft: dict = DFLASH, **training) -> Path:
    """A small float32 run as YAML (JSON is YAML)."""
    config = {
        "output_dir": str(file.parent / "run"),
        "model": {"target_model_path": str(target), "dtype": "float32"},
        "draft": draft,
        "dataset": {"train_data_path": str(train), "eval_data_path": str(held_out)},
        "training": {"micro_batch_size": 2, "optimizer": "muon", "learning_rate": 3e-3, "min_lr": 1e-4, **training},
        "evaluation": {"interval": 4, "max_samples": 4},
        "tracking": {"log_interval": 2},
    }
    file.write_text(json.dumps(config))
    return file
