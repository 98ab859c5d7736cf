"""A table as LaTeX for a paper: booktabs, every text escaped."""

from collections.abc import Sequence

from bus_smp.text import printable

_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    }
)


def latex(text: str) -> str:
    """``text`` so that LaTeX prints it."""
    return printable(text).translate(_SPECIAL).replace(r"\textgreater{}=", r"$\geq$")


def latex_table(title: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    r"""A ``tabular`` to be read with ``\input``.

    Args:
        title: becomes a comment in the first line.
        heads: of the columns, the first for the names of the rows.
        rows: heading and cells of each row; the heading is written where it changes, "" is none.
    """
    lines = [
        f"% {printable(title)}",
        r"% needs \usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        " & ".join(map(latex, heads)) + r" \\",
        r"\midrule",
    ]
    above = ""
    for heading, cells in rows:
        if heading != above:
            lines += [r"\addlinespace"] * bool(above)
            lines.append(f"\\multicolumn{{{len(heads)}}}{{l}}{{\\emph{{{latex(heading)}}}}} \\\\")
            above = heading
        lines.append(" & ".join(map(latex, cells)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
