"""Settings and commands as a user types them, with quotes where YAML or the shell would read something else."""

import json
import shlex
from pathlib import Path

DEFAULT_OUT = Path("outputs")


def setting(key: str, value: str | list[str]) -> str:
    """``KEY=VALUE`` for ``--set``; the value is quoted if YAML would not read it as this text."""
    texts = [value] if isinstance(value, str) else value
    written = ", ".join(_scalar(text, inside=not isinstance(value, str)) for text in texts)
    return f"{key}={written}" if isinstance(value, str) else f"{key}=[{written}]"


def typed(word: str) -> str:
    """A word of a command as typed into a shell, in double quotes where possible: Windows knows no others."""
    if shlex.quote(word) == word:
        return word
    key, equals, value = word.partition("=")
    if any(sign in word for sign in '"$`\\!\n'):
        return shlex.quote(word)
    return f'{key}="{value}"' if equals and shlex.quote(key) == key else f'"{word}"'


def command_line(*words: object, out: Path = DEFAULT_OUT) -> str:
    """A command as typed into a shell, with ``--out`` where the user gave another folder than the default."""
    place = [] if out == DEFAULT_OUT else ["--out", out]
    return " ".join(typed(str(word)) for word in ("bus-smp", *words, *place))


def run_name(folder: Path, out: Path) -> str:
    """What to type for the run or experiment of a folder: its name, or its path where it is not in ``out``."""
    return folder.name if folder.parent.resolve() == out.resolve() else str(folder)


def _scalar(text: str, inside: bool) -> str:
    """The shortest YAML of a text; ``inside``: as an entry of a list."""
    import yaml

    for written in (text, "'" + text.replace("'", "''") + "'"):
        document = f"[{written}]" if inside else written
        try:
            if yaml.safe_load(document) == ([text] if inside else text):
                return written
        except yaml.YAMLError:
            pass
    return json.dumps(text)
