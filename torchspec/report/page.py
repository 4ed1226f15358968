"""A page and its pictures: the HTML is whole without them, they are there to be pasted."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from torchspec.files.whole import whole
from torchspec.report.charts import Chart
from torchspec.report.results import count, shown, with_interval

ENVIRONMENT = Environment(loader=PackageLoader("torchspec.report", "."), autoescape=True, undefined=StrictUndefined)
ENVIRONMENT.filters.update(count=count, shown=shown, with_interval=with_interval)


def write_page(file: Path, template: str, values: dict, charts: list[Chart], pictures: Path) -> Path:
    """Renders `template` to `file`, and writes pictures/NAME.png for every chart; pictures of an earlier page go."""
    page = ENVIRONMENT.get_template(template).render(values)
    pictures.mkdir(exist_ok=True)
    for old in pictures.glob("*.png"):
        old.unlink()
    for chart in charts:
        (pictures / f"{chart.name}.png").write_bytes(chart.png)
    with whole(file) as partial:
        partial.write_text(page, encoding="utf-8")
    return file
