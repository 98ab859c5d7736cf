"""Settings as a user types them: ``--set KEY=VALUE`` whose value YAML reads back as it was, whatever a folder is called."""

import json
import shlex


def setting(key: str, value: str | list[str]) -> str:
    """``KEY=VALUE`` for ``--set``, the value quoted where YAML would take it for something else than this text."""
    texts = [value] if isinstance(value, str) else value
    written = ", ".join(_scalar(text, inside=not isinstance(value, str)) for text in texts)
    return f"{key}={written}" if isinstance(value, str) else f"{key}=[{written}]"


def typed(word: str) -> str:
    """A word of a command as typed into a shell. Double quotes where they do: other systems know no others."""
    if shlex.quote(word) == word:
        return word
    key, equals, value = word.partition("=")
    if any(sign in word for sign in '"$`\\!\n'):
        return shlex.quote(word)
    return f'{key}="{value}"' if equals and shlex.quote(key) == key else f'"{word}"'


def _scalar(text: str, inside: bool) -> str:
    """The plainest YAML of a text; ``inside`` a list."""
    import yaml

    for written in (text, "'" + text.replace("'", "''") + "'"):
        document = f"[{written}]" if inside else written
        try:
            if yaml.safe_load(document) == ([text] if inside else text):
                return written
        except yaml.YAMLError:
            pass
    return json.dumps(text)
