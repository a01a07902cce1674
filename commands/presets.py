"""The command ``presets``."""

from .. import configs
from .console import rows, say


def presets() -> None:
    """List the shipped configurations, by the command whose --config takes them."""
    shipped = {
        "build": configs.presets(),
        "train pretrain": configs.presets("pretrain"),
        "train finetune": configs.presets("finetune"),
    }
    width = max(len(name) for descriptions in shipped.values() for name in descriptions)
    for command, descriptions in shipped.items():
        say(command, style="bold")
        for row in rows({f"  {name:{width}}": description for name, description in descriptions.items()}):
            say(row)
