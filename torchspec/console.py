"""Where everything that is said to a user goes."""

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
