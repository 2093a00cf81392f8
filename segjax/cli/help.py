"""Texts of --help."""

from absl import flags

from segjax.cli import VERBS


def verbs() -> str:
    """Lists all verbs, one per line."""
    lines = ["usage: segjax VERB [flags]     (segjax VERB --help lists the flags)", ""]
    return "\n".join(lines + [f"  {name:10}{each.text}" for name, each in VERBS.items()])


def flags_of(verb: str, values: flags.FlagValues) -> str:
    """Lists a verb's flags, one per line."""
    needed = "".join(f" --{name} {name.upper()}" for name in VERBS[verb].required)
    lines = [f"segjax {verb}: {VERBS[verb].text}", "", f"usage: segjax {verb}{needed} [flags]", ""]
    for name in values:
        flag = values[name]
        default = f" [{flag.default}]" if flag.default is not None and not flag.boolean else ""
        label = f"--{name}" + (f", --no{name}" if flag.boolean and flag.default else "")
        lines.append(f"  {label:28}{flag.help}{default}")
    return "\n".join(lines)
