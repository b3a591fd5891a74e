"""The documentation site.

``pip install -e ".[docs]" && python -m sphinx -W docs build/site`` builds it.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from snn_single_spike import __version__

project = "snn-single-spike"
author = "The snn-single-spike authors"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "docs.site.pages",
]
exclude_patterns = ["conf.py", "site"]
repository = "https://github.com/snn-single-spike/snn-single-spike/blob/main/"

# The examples run when the site is built, and their pages show what they print and draw.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds for a cell
nb_merge_streams = True
suppress_warnings = ["myst-nb.lexer"]  # without execution the language of cells is not known
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm's, in a kernel

myst_heading_anchors = 4  # the anchors that GitHub gives to headings
default_role = "code"  # docstrings write `x`, as those of snnTorch
smartquotes = False  # "subtract" is a value
autosummary_generate = False
autodoc_typehints = "none"  # the docstrings name the types
autodoc_member_order = "bysource"
# A reference to a name of this package must lead somewhere.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!snn_single_spike\b).*")]

# The links to other sites need their inventories, so only builds with a network have them.
if os.environ.get("READTHEDOCS") or os.environ.get("DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "snntorch": ("https://snntorch.readthedocs.io/en/latest", None),
    }

html_theme = "furo"
html_title = f"{project} {version}"
html_theme_options = {
    "source_repository": "https://github.com/snn-single-spike/snn-single-spike/",
    "source_branch": "main",
    "source_directory": "docs/",
}
