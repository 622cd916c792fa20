"""What `vidgraph report` writes: HTML, Markdown and CSV files about runs.

It reads run folders, caches and videos; only `cli` imports it. `run_folders`, `groups`,
`predictions` and `cache_facts` read facts, the `*_sections` modules turn them into a `document`,
and `html_page` and `markdown` write that. The function is
`heads.reporting.report.report`.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "Document": "document",
    "FoundRun": "run_folders",
    "RunGroup": "groups",
    "WrittenReport": "report",
    "find_runs": "run_folders",
    "read_run": "run_folders",
    "to_csv": "markdown",
    "to_html": "html_page",
    "to_markdown": "markdown",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
