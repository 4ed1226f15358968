"""What a misspelt word was meant to be, and on which line of a YAML file a key stands."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """`did you mean block_size?` behind `before`, or nothing where no known word is near. Case does not count."""
    names = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), names, n=1)
    return f"{before}did you mean {names[near[0]]}?" if near else ""


def line_of(text: str, path: tuple[str | int, ...]) -> int | None:
    """Line, from 1, of the key at this path of a YAML mapping, or of the innermost section above it that is there; none at the top."""
    import yaml

    node, line = yaml.compose(text, yaml.SafeLoader), None
    for part in path:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
        if found is None:
            break
        key, node = found
        line = key.start_mark.line + 1
    return line
