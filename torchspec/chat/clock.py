"""Templates that print the day print this one: the same data must give the same ids tomorrow.

A server prints its own day; no training data can. The day is the one that Llama's templates print where they have no clock.
"""

from datetime import datetime

DAY = datetime(2024, 7, 26)
DIRECTIVES = [sign + letter for letter in "aAbBcdeFHIjmMpSuUwWxXyYZ" for sign in ("%", "%-")]


def uses_clock(template: str) -> bool:
    return "strftime_now" in template


def with_fixed_day(template: str) -> str:
    """The template with a macro in the place of the function that Transformers gives it."""
    if not uses_clock(template):
        return template
    written = "".join(f" | replace('{directive}', '{DAY.strftime(directive)}')" for directive in DIRECTIVES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{written} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"
