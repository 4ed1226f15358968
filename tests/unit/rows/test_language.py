"""Oracle: sentences whose language a reader knows."""

import json

import pytest

from torchspec.errors import UserError
from torchspec.rows.collect import collect
from torchspec.rows.language import Languages

pytest.importorskip("py3langid", reason="the extra `language` is missing")

PROMPTS = {
    "en": "Please tell me what the capital of France is.",
    "de": "Schreibe bitte ein Gedicht über den Herbst.",
    "zh": "请给我写一首关于秋天的诗。",
    "code": "def f(x): return x + 1",
    "short": "Hi",
}


@pytest.mark.parametrize(
    ("wanted", "kept"), [([], list(PROMPTS)), (["en"], ["en", "code", "short"]), (["de", "zh"], ["de", "zh", "code", "short"])]
)
def test_what_is_clearly_in_another_language_is_left_out_and_listed(write_jsonl, tmp_path, wanted, kept):
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "OK."}]} for text in PROMPTS.values()]
    collected = collect([write_jsonl("chats.jsonl", rows)], tmp_path / "out.jsonl", None, 0, 0, Languages(wanted), progress=False)
    written = [json.loads(line)["messages"][0]["content"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == [PROMPTS[name] for name in kept]
    assert dict(collected.ledger.filtered) == ({"in another language": len(PROMPTS) - len(kept)} if len(kept) < len(PROMPTS) else {})
    if wanted == ["en"]:
        assert '"in another language: de and not en"' in collected.listing.read_text()


def test_an_unknown_code_is_named():
    with pytest.raises(UserError, match="--language english is not known, give codes such as en, zh or de"):
        Languages(["english"])
