"""What a shell completes: verbs, and the flags of each. `source <(spikegpt completion bash)`, or zsh."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress

from .parsing import HELP_ALL, UsageError

SHELLS = ("bash", "zsh")
# asks another program for its flags
NOT_OURS = ("lm-eval",)
_BEFORE_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"


def completion_script(arguments: Sequence[str], verbs: Mapping[str, Callable[[list[str]], int]]) -> str:
    """Return the script that tells the shell in `arguments` what `spikegpt` takes.

    Raises:
        UsageError: no shell is named, or one that is not known.
    """
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise UsageError(f"name your shell, {' or '.join(SHELLS)}: source <(spikegpt completion bash)")
    cases = "\n".join(f'        {verb}) flags="{" ".join(_flags_of(verb, run))}" ;;' for verb, run in verbs.items())
    return f"""{_BEFORE_ZSH if arguments[0] == "zsh" else ""}_spikegpt() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" flags=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(verbs)} help version" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    case "$word" in
        -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
    esac
}}
complete -o default -F _spikegpt spikegpt"""


def _flags_of(verb: str, run: Callable[[list[str]], int]) -> list[str]:
    """The flags in the help of a verb, each once."""
    if verb in NOT_OURS:
        return []
    said = io.StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        run([HELP_ALL])
    named = re.findall(r"^  (-.*?)(?:  |$)", said.getvalue(), re.MULTILINE)
    return list(dict.fromkeys(flag for names in named for flag in re.findall(r"--[a-z][\w-]*", names)))
