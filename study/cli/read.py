"""The commands that read: show, export, report, dashboard and techniques; nothing is trained."""

from __future__ import annotations

import signal
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from study.cli.options import (
    DEFAULT_ARTIFACTS,
    DEFAULT_STORAGE,
    REPORTS,
    Artifacts,
    DataDir,
    File,
    Json,
    OneName,
    Storage,
)
from study.cli.terminal import err, out, print_document, quiet, say, uncollected
from vae.command import grouped
from vae.errors import UserError


@grouped
@uncollected()
def show(
    name: OneName = None,
    storage: Storage = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """The tables of an experiment, or the list of experiments, in the terminal."""
    quiet()
    from study.analysis.standing import Standing
    from study.cli.tables import print_comparison, print_experiments, print_search
    from study.store.store import Store

    with Store.open(storage, read_only=True) as store:
        if name is None and len(store.experiments()) != 1:
            if json:
                from study.analysis.document import of_names

                print_document(of_names(store.experiments(), store.url))
                return
            print_experiments(out, store)
            return
        standing = Standing.read(store, store.pick_name(name))
        if json:
            from study.analysis.document import of_standing

            print_document(of_standing(standing))
            return
        print_comparison(out, standing)
        print_search(out, standing)


@grouped
@uncollected()
def export(
    name: OneName = None,
    storage: Storage = DEFAULT_STORAGE,
    folder: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("export"),
    format: Annotated[str, typer.Option("--format", help="csv or parquet.")] = "csv",
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="USE",
            help="fastest, best or baseline: this one also as a script that needs torch and numpy alone.",
        ),
    ] = None,
    models: Annotated[
        bool, typer.Option("--models", help="Also copy the models of these recipes, from --artifacts.")
    ] = False,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    data_dir: DataDir = None,
) -> None:
    """Write trials, learning curves and arms as CSV or Parquet files, recipes as TOML files, and one as a script."""
    quiet()
    from study.analysis.evidence import read
    from study.analysis.export import export_models, export_tables, require_format
    from study.place import require_writable
    from study.store.artifacts import Artifacts as Files
    from study.store.locations import locate
    from study.store.store import Store

    if artifacts != DEFAULT_ARTIFACTS and not models:
        raise UserError(
            f"--artifacts {artifacts} is where --models copies from: add --models, or leave it out."
        )
    require_writable(folder, "--out")
    with Store.open(storage, read_only=True) as store:
        require_format(format)
        evidence = read(store, store.pick_name(name))
        script = None
        if recipe is not None:
            from study.analysis.script import script_of  # with torch

            script = script_of(evidence, recipe, data_dir)
        written = export_tables(evidence, folder, format)
        if models:
            files = Files.of(locate(artifacts), evidence.name, evidence.kept_artifacts)
            written += export_models(evidence, files, folder, say)
        if script is not None:
            written += script.write(folder)
        for path in written:
            out.print(f"{path}", soft_wrap=True, markup=False)
        if script is not None:
            for note in script.script.notes:
                say(f"Note: {note}")
            say(f"Trains as the study did: {script.command(folder)}")


@grouped
@uncollected()
def report(
    name: OneName = None,
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    data_dir: DataDir = None,
    path: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: reports/NAME.html.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="html, or md: the tables, printed.")] = "html",
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Also PNG and SVG files (needs [figures])."),
    ] = None,
) -> None:
    """Write the HTML report of an experiment from its database; nothing is trained."""
    if format not in ("html", "md"):
        raise UserError(f"--format {format}: choose html or md.")
    quiet()
    from study.analysis.evidence import read
    from study.place import require_writable
    from study.report import markdown
    from study.report.files import write_figures
    from study.report.page import write_report
    from study.store.locations import locate
    from study.store.store import Store

    if path is not None and path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file, for example {path / 'report.html'}.")
    if format == "html":
        require_writable(REPORTS if path is None else path.parent, "The folder of the report")
    if figures is not None:
        require_writable(figures, "--figures")
    place = locate(artifacts)
    with Store.open(storage, read_only=True) as store:
        evidence = read(store, store.pick_name(name))
        if format == "md":
            print(markdown.render(evidence), end="")
        else:
            path = path or REPORTS / f"{evidence.name}.html"
            written = write_report(evidence, path, place, data_dir)
            out.print(f"Report: {written}", soft_wrap=True)
        if figures is not None:
            for file in write_figures(evidence, figures, place, data_dir):
                err.print(f"{file}", soft_wrap=True)


@grouped
def dashboard(
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; it has no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8080,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve the Optuna dashboard with this study's notes, plots and images."""
    quiet()
    from study.dashboard.server import listen
    from study.store.locations import locate

    # A shell starts what stands before its & with Ctrl-C ignored, and this ends by nothing else.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with listen(storage, locate(artifacts), host, port, say) as dashboard:
        if not dashboard.local:
            say(
                f"Warning: {host} can be reached from other machines, and the dashboard has no login: "
                f"whoever reaches it can read every study in {dashboard.database}. Its buttons are "
                "switched off; they work on --host 127.0.0.1."
            )
        say(f"Dashboard of {dashboard.database}: {dashboard.url} (Ctrl-C ends it)")
        if open_browser:
            webbrowser.open(dashboard.url)
        dashboard.serve()


@grouped
def techniques(
    file: File = None,
) -> None:
    """List the techniques that can be compared: built-in ones and those of an experiment file."""
    from study.cli.techniques import print_techniques
    from study.design.build import read_toml
    from study.design.techniques import catalogue

    print_techniques(out, catalogue(read_toml(file).get("techniques", {}) if file else {}))
