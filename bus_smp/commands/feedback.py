"""``bus-smp feedback``."""

from pathlib import Path

import click


@click.command("feedback")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option("--truth", type=click.Path(path_type=Path), help="Manifest that has the labels of the images.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON, and nothing else.")
def command(folders: tuple[Path, ...], truth: Path | None, as_json: bool) -> None:
    """Tabulate what readers answered on the page: agreement, changed calls, time.

    FOLDERS are those of bus-smp serve --to; several readers may have one each.  [default: feedback]
    Intervals are over patients. With --truth, calls that the model changed are counted as helped or harmed.
    Writes readers.csv, readers.json and readers.png into the first folder.
    """
    import json

    from bus_smp.errors import DataError
    from bus_smp.figures.readers import write_readers
    from bus_smp.runs.evaluations import write_table
    from bus_smp.serve.records import read_records
    from bus_smp.statistics.readers import MEASURES, format_readers, read_table, tabulate_readers
    from bus_smp.system.files import write_text
    from bus_smp.text import NOT_CLINICAL, folded

    folders = folders or (Path("feedback"),)
    records = [record for folder in folders for record in read_records(folder)]
    labels = {}
    if truth:
        from bus_smp.data.manifest import read_manifest

        frame = read_manifest(truth, images=False).frame
        labels = {
            row["sha256"]: (row["label"], row["group_id"])
            for row in frame.to_dict("records")
            if row["sha256"]
        }
    table = read_table(records, labels)
    if table.empty:
        raise DataError(
            f"{', '.join(map(str, folders))}: no image was read to the end", hint="bus-smp serve --to FOLDER"
        )
    found = tabulate_readers(table)
    write_table(table, folders[0] / "readers.csv")
    write_text(folders[0] / "readers.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    shares = {key: words for key, (words, unit) in MEASURES.items() if unit == "%"}
    write_readers(
        found["readers"],
        shares,
        folders[0] / "readers.png",
        f"Readers and model. {NOT_CLINICAL}",
    )
    if as_json:
        click.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    click.echo("\n".join(format_readers(found)))
    if truth and not (table["truth"] != "").any():
        click.echo("\n".join(folded(f"None of the images is in {truth}: helped and harmed are not known.")))
    elif not truth:
        click.echo("Whether the model helped or harmed: --truth MANIFEST, which has the labels.")
    click.echo(f"Written to {folders[0]}: readers.csv, readers.json, readers.png")
