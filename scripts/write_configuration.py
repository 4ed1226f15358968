"""python scripts/write_configuration.py: docs/configuration.md from the schema of the config. A test compares the two."""

from pathlib import Path

from torchspec.config import RunConfig

FILE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """# Configuration

Written by `python scripts/write_configuration.py` from the schema in `torchspec/config.py`; edit the descriptions there.

A run is one YAML file and any number of overrides: `torchspec train -c FILE section.key=value ...`. A key that is not listed here is
refused, and so is a value of the wrong type; the sentence names the field, the value and the fix. A relative path counts from the
current folder. `run.json` in every checkpoint holds the whole config, defaults included.

A run that is started again with the same `output_dir` resumes from its latest checkpoint, as if it had never been stopped. It is refused,
with the field and both values, where that cannot be: another value of `model`, `draft`, `dataset` or `training`, another
`inference.inference_engine_type`, `transfer_dtype` or `evaluation.max_samples`; other tokens or loss masks of the training or held-out
data; another file of the target; another mask token. Free to change (`FREE_TO_CHANGE` in `torchspec/config.py`): paths, whose contents
alone count; ranks x accumulation as long as their product stays; what is saved, logged, cached and prefetched; capture workers.

One run writes an `output_dir` at a time: the second is refused with the first one's process, and a lock goes with its holder, however it
ends. The lock is flock of the file system, on NFS also between nodes; where there is none, a warning says so. Ctrl-C and SIGTERM stop a
run within its step, with a checkpoint that the same command goes on from and exit code 130 or 143; so does a full disk, with exit code 2.
"""


def document() -> str:
    schema = RunConfig.model_json_schema()
    sections = {name: field for name, field in schema["properties"].items() if _models(field)}
    plain = {name: field for name, field in schema["properties"].items() if name not in sections}
    parts = [HEAD, _table(_rows("", {"properties": plain, "required": schema["required"]}, schema["$defs"]))]
    for name, field in sections.items():
        for model in _models(field):
            definition = schema["$defs"][model]
            chosen = definition["properties"].get("method", {}).get("const")
            title = f"## {name}" + (f" (method: {chosen})" if chosen else "")
            parts.append(f"{title}\n\n{_table(_rows(name + '.', definition, schema['$defs']))}")
    return "\n".join(parts)


def _models(field: dict) -> list[str]:
    """Names of the models that a field may hold: one for a section, several where a key inside chooses."""
    references = [field, *field.get("anyOf", []), *field.get("oneOf", [])]
    return [reference["$ref"].rpartition("/")[2] for reference in references if "$ref" in reference]


def _table(rows: list[str]) -> str:
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _rows(prefix: str, definition: dict, models: dict) -> list[str]:
    """One row per key; a section inside a section contributes its own."""
    rows, required = [], definition.get("required", [])
    for name, field in definition["properties"].items():
        inner = _models(field)
        if inner:
            rows += [row for model in inner for row in _rows(f"{prefix}{name}.", models[model], models)]
            continue
        default = "required" if name in required else f"`{_yaml(field['default'])}`"
        rows.append(f"| `{prefix}{name}` | {_type(field)} | {default} | {field.get('description', '').replace('|', '/')} |")
    return rows


def _yaml(value: object) -> str:
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def _type(field: dict) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "prefixItems" in field:
        return f"[{', '.join(map(_type, field['prefixItems']))}]"
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if field["type"] == "object":
        return f"name: {_type(field['additionalProperties'])}"
    limits = {"minimum": "≥ ", "exclusiveMinimum": "> ", "maximum": "≤ ", "exclusiveMaximum": "< "}
    bounds = [f"{sign}{field[key]:g}" for key, sign in limits.items() if key in field]
    return " ".join([field["type"], *bounds])


if __name__ == "__main__":
    FILE.write_text(document())
